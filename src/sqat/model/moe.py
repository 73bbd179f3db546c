"""Mixture of experts: a router sends every token to its k best experts. No token is dropped.

Shape letters: N tokens, E experts, k experts per token, D width, F expert hidden, I = F (or 2F, gated); R rows sorted
by expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.model.dispatch import autocast_dtype, has_values, load_plugins, operation, without_autocast
from sqat.model.feedforward import activate, dropout


class RouterStats(NamedTuple):
    """One layer's routing, as sums over tokens, so that batches add up; carries gradients where probabilities are
    concerned.
    """

    load_E: Tensor  # selections that chose expert e (each token makes k)
    probability_E: Tensor  # sum of router probability over all tokens
    selected_E: Tensor  # sum of router probability over the tokens that chose e
    entropy: Tensor  # sum of the router distribution's entropy, nats
    tokens: Tensor  # how many tokens were counted


class Experts(NamedTuple):
    """Stacked weights of all experts, biases `None` where they have none, and what they compute with them: see
    :class:`sqat.model.feedforward.FeedForward`.
    """

    fc1_EID: Tensor
    fc1_bias_EI: Tensor | None
    fc2_EDF: Tensor
    fc2_bias_ED: Tensor | None
    activation: str = "silu"
    gated: bool = True
    dropout: float = 0.0  # 0 in evaluation

    def each(self, dtype: torch.dtype) -> list[tuple[Any, ...]]:
        """The four weights of every expert."""
        count = len(self.fc1_EID)
        return list(zip(*([None] * count if w is None else w.to(dtype).unbind(0) for w in self[:4]), strict=True))


class MoE(nn.Module):
    """Top-k routed experts: softmax over all experts, the k largest weights renormalised to sum to one (as Mixtral,
    arXiv 2401.04088).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        load_plugins()
        num, width, hidden = config.num_experts, config.hidden_size, config.intermediate_size
        inner = hidden * (2 if config.gated else 1)
        self.experts_per_token = config.experts_per_token
        self.gated = config.gated
        self.activation = config.activation
        self.dropout = config.feedforward_dropout
        self.router = nn.Linear(width, num, bias=False)
        self.fc1_weight = nn.Parameter(torch.empty(num, inner, width))
        self.fc2_weight = nn.Parameter(torch.empty(num, width, hidden))
        self.fc1_bias = nn.Parameter(torch.empty(num, inner)) if config.feedforward_bias else None
        self.fc2_bias = nn.Parameter(torch.empty(num, width)) if config.feedforward_bias else None

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None = None) -> tuple[Tensor, RouterStats]:
        """(B, T, D) to (B, T, D) of the same type, and statistics over the tokens where `real_BT` holds (all by
        default).
        """
        x_ND = x_BTD.flatten(0, -2)
        with without_autocast(x_ND):  # routing is decided in full precision
            probs_NE = router_softmax(F.linear(x_ND.float(), self.router.weight.float()))
        selected_Nk, experts_Nk = probs_NE.topk(self.experts_per_token, dim=-1)
        weights_Nk = selected_Nk / (selected_Nk.sum(dim=-1, keepdim=True) + 1e-9)
        weights = self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias
        experts = Experts(*weights, self.activation, self.gated, self.dropout if self.training else 0.0)
        y_ND = run_experts(x_ND, experts_Nk, weights_Nk, experts)
        real_N = None if real_BT is None else real_BT.flatten()
        return y_ND.to(x_BTD.dtype).view(x_BTD.shape), router_stats(probs_NE, selected_Nk, experts_Nk, real_N)


@operation
def router_softmax(logits_NE: Tensor) -> Tensor:
    """Softmax over the experts."""
    return logits_NE.softmax(dim=-1)


def router_stats(
    probs_NE: Tensor, selected_Nk: Tensor, experts_Nk: Tensor, real_N: Tensor | None = None
) -> RouterStats:
    """Sums over the tokens where `real_N` holds (all by default)."""
    entropy_N = -(probs_NE.detach() * probs_NE.detach().clamp_min(1e-20).log()).sum(dim=-1)
    count_Nk = torch.ones_like(selected_Nk)
    if real_N is not None:
        real_N1 = real_N.unsqueeze(-1)
        probs_NE, selected_Nk, count_Nk = probs_NE * real_N1, selected_Nk * real_N1, count_Nk * real_N1
        entropy_N = entropy_N * real_N
    return RouterStats(
        load_E=sum_by_expert(count_Nk, experts_Nk, probs_NE.shape[-1]),
        probability_E=probs_NE.sum(dim=0),
        selected_E=sum_by_expert(selected_Nk, experts_Nk, probs_NE.shape[-1]),
        entropy=entropy_N.sum(),
        tokens=count_Nk[:, 0].sum(),
    )


@operation
def sum_by_expert(values_Nk: Tensor, experts_Nk: Tensor, num_experts: int) -> Tensor:
    """The values of all tokens, summed by expert, (E,)."""
    return values_Nk.new_zeros(num_experts).index_add(0, experts_Nk.flatten(), values_Nk.flatten())


def by_expert(values_Nk: Tensor, experts_Nk: Tensor, num_experts: int) -> Tensor:
    """A token's values over all experts, zero at those it did not choose, (N, E)."""
    return values_Nk.new_zeros(values_Nk.shape[0], num_experts).scatter_add(1, experts_Nk, values_Nk)


@operation
def run_experts(x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, experts: Experts) -> Tensor:
    """Sum over each token's k experts of weight · expert(x); (N, D), float32 or wider. Matrix products run in the
    autocast type, if one is set.

    `experts_Nk` and `weights_Nk` say which experts, and how much of each.
    """
    if not has_values(x_ND, experts):  # an expert's number of rows is unknown
        return run_experts_naive(x_ND, experts_Nk, weights_Nk, experts)
    compute = autocast_dtype(x_ND)
    with without_autocast(x_ND):
        rows = sort_by_expert(experts_Nk, len(experts.fc1_EID))
        x_RD = x_ND.to(compute).index_select(0, rows.token_R)
        parts = x_RD.split(rows.ends_E.diff(prepend=rows.ends_E.new_zeros(1)).tolist())
        y_RD = torch.cat([_expert(*pair, experts) for pair in zip(parts, experts.each(compute), strict=True)])
        y_NkD = y_RD[rows.place_Nk]
        return (y_NkD * weights_Nk.unsqueeze(-1)).sum(dim=1)


class SortedRows(NamedTuple):
    """A buffer with a row for every (token, expert) selection, those of one expert together."""

    token_R: Tensor  # which token a row is; token 0 in rows that only fill up
    place_Nk: Tensor  # which row a selection has
    ends_E: Tensor  # where each expert's rows end


def sort_by_expert(experts_Nk: Tensor, num_experts: int, block: int = 1) -> SortedRows:
    """Sort selections by expert, without waiting for the device. A `block` above 1 fills every expert's rows up to a
    multiple of it, one block at least, with room for the worst case: R does not depend on who chose what.
    """
    num_selections, device = experts_Nk.numel(), experts_Nk.device
    small = torch.uint8 if num_experts <= 256 else torch.int16  # a radix sort's passes are the key's bytes
    sorted_S, order_S = experts_Nk.flatten().to(small).sort(stable=True)
    ends_E = torch.searchsorted(sorted_S, torch.arange(num_experts, dtype=small, device=device), right=True)
    if block == 1:
        row_S, room_ends_E = torch.arange(num_selections, device=device), ends_E
    else:
        count_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        room_E = ((count_E + block - 1).div(block, rounding_mode="floor") * block).clamp(min=block)
        room_ends_E = room_E.cumsum(0)
        shift_E = (room_ends_E - room_E) - (ends_E - count_E)  # by how much filling moves an expert's rows
        row_S = torch.arange(num_selections, device=device) + shift_E[sorted_S.long()]
    num_rows = num_selections if block == 1 else (-(-num_selections // block) + num_experts) * block
    token_S = order_S.div(experts_Nk.shape[1], rounding_mode="floor")
    token_R = order_S.new_zeros(num_rows).scatter_(0, row_S, token_S)
    place_S = torch.empty_like(order_S).scatter_(0, order_S, row_S)
    return SortedRows(token_R, place_S.view_as(experts_Nk), room_ends_E)


def run_experts_naive(x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, experts: Experts) -> Tensor:
    """The definition: every expert on every token, weighted by zero where it was not chosen. Tests hold
    :func:`run_experts` to it; where something is traced it is what runs, since no shape in it depends on values.
    """
    out_ND = torch.zeros_like(x_ND, dtype=torch.promote_types(x_ND.dtype, weights_Nk.dtype))
    share_NE = by_expert(weights_Nk, experts_Nk, len(experts.fc1_EID))
    for e, own in enumerate(experts.each(x_ND.dtype)):
        out_ND = out_ND + _expert(x_ND, own, experts) * share_NE[:, e, None]
    return out_ND


def _expert(x: Tensor, weights: tuple[Any, ...], experts: Experts) -> Tensor:
    """One expert on its rows."""
    fc1, fc1_bias, fc2, fc2_bias = weights
    hidden = activate(F.linear(x, fc1, fc1_bias), experts.activation, experts.gated)
    return F.linear(dropout(hidden, experts.dropout, training=True), fc2, fc2_bias)
