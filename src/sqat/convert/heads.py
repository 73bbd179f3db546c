"""Which heads become one: by order, by score, or by likeness, always among heads that share a key/value head.

Shape letters: H query heads, C head_dim, D hidden size, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqat.convert.architectures import Heads

Groups = list[tuple[int, ...]]  # for each head of the result, the heads that it is made of


@dataclass(frozen=True)
class Observed:
    """What is known of a layer's heads."""

    score_H: Tensor  # the higher, the better worth keeping
    similarity_HH: Tensor  # cosine, 1 for the same direction


def observe_weights(attention: Any, heads: Heads) -> Observed:
    """Score: Frobenius norm of a head's output times value matrix, all that it can write. Likeness: of query rows."""
    output_HDC = _output(attention, heads)
    value_HCD = attention.v_proj.weight.detach().float().unflatten(0, (heads.kv, heads.head_dim))
    value_HCD = value_HCD.repeat_interleave(heads.query // heads.kv, dim=0)
    # ‖O V‖² = tr(OᵀO VVᵀ), without the D × D product
    squared_H = ((output_HDC.mT @ output_HDC) * (value_HCD @ value_HCD.mT)).sum(dim=(1, 2))
    query_HX = attention.q_proj.weight.detach().float().unflatten(0, (heads.query, heads.head_dim)).flatten(1)
    return Observed(squared_H.clamp(min=0).sqrt(), _cosine(query_HX @ query_HX.T))


class ActivationObserver:
    """Watches a layer's heads while text is read. Score: mean norm of what a head adds to the residual stream.
    Likeness: of the heads' weighted value sums, which is what their output columns, once summed, will have in common.
    """

    def __init__(self, attention: Any, heads: Heads) -> None:
        self.heads = heads
        output_HDC = _output(attention, heads)
        self.output_HCC = output_HDC.mT @ output_HDC
        self.norm_H = torch.zeros(heads.query, dtype=torch.float64)
        self.gram_HH = torch.zeros(heads.query, heads.query, dtype=torch.float64)
        self.tokens = 0
        self.hook = attention.o_proj.register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_HNC = inputs[0].detach().float().flatten(0, -2).unflatten(-1, (self.heads.query, -1)).transpose(0, 1)
        self.norm_H += ((x_HNC @ self.output_HCC) * x_HNC).sum(-1).clamp(min=0).sqrt().sum(-1).double().cpu()
        x_HX = x_HNC.flatten(1)
        self.gram_HH += (x_HX @ x_HX.T).double().cpu()
        self.tokens += x_HNC.shape[1]

    def observed(self) -> Observed:
        return Observed((self.norm_H / max(self.tokens, 1)).float(), _cosine(self.gram_HH).float())


def group_heads(method: str, heads: Heads, new: Heads, observed: Observed | None) -> Groups:
    """For each of `new.query` heads the old ones that make it up, in ascending order; the heads of one new key/value
    head come of those that used the old ones it is the mean of.
    """
    pool_size, count = heads.query // new.kv, new.query // new.kv
    groups: Groups = []
    for start in range(0, heads.query, pool_size):
        pool = list(range(start, start + pool_size))
        if method == "mean":
            chosen = [tuple(part.tolist()) for part in torch.tensor(pool).tensor_split(count)]
        elif observed is None:
            raise AssertionError(f"{method} needs scores")
        elif method == "select":
            best = observed.score_H[pool].argsort(descending=True, stable=True)[:count]
            chosen = [(pool[i],) for i in sorted(best.tolist())]
        else:
            alike = observed.similarity_HH[pool][:, pool]
            chosen = [tuple(pool[i] for i in group) for group in agglomerate(alike, count)]
        groups += chosen
    return groups


def agglomerate(similarity_HH: Tensor, count: int) -> Groups:
    """Agglomerative clustering with average linkage (UPGMA, Sokal and Michener 1958) down to exactly `count` groups;
    the first of equals. Groups are in the order of their first members.
    """
    groups: Groups = [(i,) for i in range(len(similarity_HH))]
    while len(groups) > count:
        pairs = [(i, j) for j in range(len(groups)) for i in range(j)]
        i, j = max(pairs, key=lambda pair: _linkage(similarity_HH, groups[pair[0]], groups[pair[1]]))
        merged = tuple(sorted(groups[i] + groups[j]))
        groups = [merged if k == i else group for k, group in enumerate(groups) if k != j]
    return groups


def _linkage(similarity_HH: Tensor, one: Sequence[int], other: Sequence[int]) -> float:
    return float(similarity_HH[list(one)][:, list(other)].mean())


def _output(attention: Any, heads: Heads) -> Tensor:
    """A head's columns of the output projection, (H, D, C), in float32."""
    weight_DX = attention.o_proj.weight.detach().float()
    return weight_DX.unflatten(1, (heads.query, heads.head_dim)).transpose(0, 1)


def _cosine(gram_HH: Tensor) -> Tensor:
    norm_H = gram_HH.diagonal().clamp(min=0).sqrt().clamp(min=1e-30)
    return gram_HH / norm_H.unsqueeze(0) / norm_H.unsqueeze(1)
