"""Which heads become one: by order, by score, or by likeness, always among heads that share a key/value head.

Shape letters: H query heads, C head_dim, D hidden size, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqat.convert.architectures import Heads, attention_layers, heads_by_layer, heads_of, output_projection, unfused
from sqat.convert.plan import ConversionPlan
from sqat.errors import ConfigError
from sqat.model.decoder import evaluating

BATCH_TOKENS = 4096  # of calibration text at a time

Groups = list[tuple[int, ...]]  # for each head of the result, the heads that it is made of


@dataclass(frozen=True)
class LayerHeads:
    """What becomes of a layer's query heads."""

    groups: Groups
    output: Mapping[str, Tensor] = field(default_factory=dict)  # "weight" and "bias", if fitted, of its projection


@dataclass(frozen=True)
class Observed:
    """What is known of a layer's heads."""

    score_H: Tensor  # the higher, the better worth keeping
    similarity_HH: Tensor  # cosine, 1 for the same direction


def observe_weights(attention: Any, heads: Heads) -> Observed:
    """Score: the Frobenius norm of a head's output times value matrix, all that it can write. Likeness: the cosine of
    query matrices.
    """
    output_HDC = _output_columns(attention, heads)
    own = unfused(attention.state_dict(), heads)
    value_HCD = own["v_proj.weight"].float().unflatten(0, (heads.kv, -1))
    value_HCD = value_HCD.repeat_interleave(heads.query // heads.kv, dim=0)
    # ‖O V‖² = tr(OᵀO VVᵀ), without the D × D product
    squared_H = ((output_HDC.mT @ output_HDC) * (value_HCD @ value_HCD.mT)).sum(dim=(1, 2))
    query_HX = own["q_proj.weight"].float().unflatten(0, (heads.query, -1)).flatten(1)
    return Observed(squared_H.clamp(min=0).sqrt(), _cosine(query_HX @ query_HX.T))


@torch.no_grad()
def observe_activations(model: PreTrainedModel, heads: Heads, rows: Tensor) -> list[Observed | None]:
    """For each layer, `None` without attention. Score: the mean norm of what a head adds to the residual stream.
    Likeness: the cosine of the heads' weighted value sums, which is what their output columns, once summed, will have
    in common.
    """
    watched = [_Watched(attention, heads) if attention else None for attention in attention_layers(model)]
    with evaluating(model):
        try:
            for some in rows.split(max(1, BATCH_TOKENS // rows.shape[1])):
                model.get_decoder()(input_ids=some.to(model.device), use_cache=False)
        finally:
            for layer in filter(None, watched):
                layer.hook.remove()
    return [layer.observed() if layer else None for layer in watched]


class _Watched:
    """A layer's heads while text is read."""

    def __init__(self, attention: Any, heads: Heads) -> None:
        self.heads = heads
        output_HDC = _output_columns(attention, heads)
        self.output_HCC = output_HDC.mT @ output_HDC
        self.norm_H = torch.zeros(heads.query, dtype=torch.float64)
        self.gram_HH = torch.zeros(heads.query, heads.query, dtype=torch.float64)
        self.tokens = 0
        self.hook = output_projection(attention).register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_HNC = inputs[0].detach().float().flatten(0, -2).unflatten(-1, (self.heads.query, -1)).transpose(0, 1)
        self.norm_H += ((x_HNC @ self.output_HCC) * x_HNC).sum(-1).clamp(min=0).sqrt().sum(-1).cpu().double()
        x_HX = x_HNC.flatten(1)
        self.gram_HH += (x_HX @ x_HX.T).cpu().double()
        self.tokens += x_HNC.shape[1]

    def observed(self) -> Observed:
        return Observed((self.norm_H / max(self.tokens, 1)).float(), _cosine(self.gram_HH).float())


def group_heads(method: str, heads: Heads, new: Heads, observed: Observed | None) -> Groups:
    """For each of `new.query` heads, the old ones that make it up, in ascending order. The heads of one new key/value
    head come from those that used the old key/value heads it is the mean of.
    """
    pool_size, count = heads.query // new.kv, new.query // new.kv
    groups: Groups = []
    for start in range(0, heads.query, pool_size):
        pool = list(range(start, start + pool_size))
        if method == "mean":
            groups += [tuple(part.tolist()) for part in torch.tensor(pool).tensor_split(count)]
            continue
        assert observed is not None, f"{method} needs scores"
        if method == "select":
            best = observed.score_H[pool].argsort(descending=True, stable=True)[:count]
            groups += [(pool[i],) for i in sorted(best.tolist())]
        else:
            alike = observed.similarity_HH[pool][:, pool]
            groups += [tuple(pool[i] for i in group) for group in agglomerate(alike, count)]
    return groups


def agglomerate(similarity_HH: Tensor, count: int) -> Groups:
    """Agglomerative clustering with average linkage (UPGMA, Sokal and Michener 1958) down to exactly `count` groups,
    ordered by their first members. Of equally similar pairs, the first is merged.
    """
    groups: Groups = [(i,) for i in range(len(similarity_HH))]

    def linkage(pair: tuple[int, int]) -> float:
        one, other = (list(groups[i]) for i in pair)
        return float(similarity_HH[one][:, other].mean())

    while len(groups) > count:
        i, j = max(((i, j) for j in range(len(groups)) for i in range(j)), key=linkage)
        groups[i] = tuple(sorted(groups[i] + groups.pop(j)))
    return groups


def require_planned_for(model: PreTrainedModel, plan: ConversionPlan) -> None:
    """Raise a ConfigError unless the plan was made for a model of this architecture and these heads."""
    planned, own = heads_by_layer(plan.config), heads_by_layer(model.config)
    if (type(model.config), own) != (type(plan.config), planned):
        raise ConfigError(
            f"the plan is for {plan.config.model_type} with {len(planned)} layers of {heads_of(plan.config)}, but the "
            f"model is {model.config.model_type} with {len(own)} of {heads_of(model.config)}: plan for its own "
            "configuration"
        )


def require_token_ids(rows: Tensor, name: str, vocab_size: int, *, least: int) -> None:
    """Raise a ConfigError unless `rows` is (rows, tokens) of token ids below `vocab_size`, with at least one row of
    `least` tokens.
    """
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int64, torch.int32):
        kind = getattr(rows, "dtype", type(rows).__name__)
        raise ConfigError(f"{name} holds {kind}, but must be a tensor of token ids, int64 (rows, tokens)")
    if rows.dim() != 2 or not len(rows) or rows.shape[1] < least:
        raise ConfigError(
            f"{name} has the shape {tuple(rows.shape)}, but must be (rows, tokens) with at least one row of {least}"
        )
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ConfigError(
            f"{name} holds token {wrong}, but must hold ids from 0 to {vocab_size - 1}: the model's "
            f"vocab_size is {vocab_size}"
        )


def _output_columns(attention: Any, heads: Heads) -> Tensor:
    """Each head's columns of the output projection, (H, D, C), in float32."""
    weight_DX = output_projection(attention).weight.detach().float()
    return weight_DX.unflatten(1, (heads.query, heads.head_dim)).transpose(0, 1)


def _cosine(gram_HH: Tensor) -> Tensor:
    norm_H = gram_HH.diagonal().clamp(min=0).sqrt().clamp(min=1e-30)
    return gram_HH / norm_H.unsqueeze(0) / norm_H.unsqueeze(1)
