"""The experts' arithmetic behind one function, the only place that picks a way to compute it.

Shape letters: N tokens, k experts per token, D width, F expert hidden, I = F (or 2F, gated).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.cpu.sorted_experts import SortedExperts
from sqat.cuda.grouped_experts import run_experts_few, run_experts_grouped, supports_grouped, takes_few
from sqat.model.feedforward import ACTIVATIONS


class ExpertWeights(NamedTuple):
    """Stacked weights of all experts; biases are `None` where the experts have none."""

    fc1_EID: Tensor
    fc1_bias_EI: Tensor | None
    fc2_EDF: Tensor
    fc2_bias_ED: Tensor | None


def run_experts(
    x_ND: Tensor,
    experts_Nk: Tensor,
    weights_Nk: Tensor,
    weights: ExpertWeights,
    activation: str,
    gated: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Sum over each token's k experts of weight · expert(x); (N, D), float32 or wider. Matrix products run in the
    autocast type, if one is set.

    Args:
        x_ND: tokens.
        experts_Nk, weights_Nk: which experts, and how much of each.
        activation, gated, dropout: of the expert, as in :class:`sqat.model.feedforward.FeedForward`.
    """
    device = x_ND.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
    if not dropout and takes_few(x_ND):
        return run_experts_few(x_ND, experts_Nk, weights_Nk, weights, activation, gated)
    if supports_grouped(x_ND, weights, compute):
        return run_experts_grouped(x_ND, experts_Nk, weights_Nk, weights, activation, gated, dropout)
    with torch.autocast(device, enabled=False):
        return SortedExperts.apply(x_ND, experts_Nk, weights_Nk, *weights, activation, gated, dropout, compute)


def run_experts_naive(
    x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, weights: ExpertWeights, activation: str, gated: bool
) -> Tensor:
    """The definition, for tests: every expert on every token, weighted by zero where it was not chosen."""
    out_ND = torch.zeros_like(x_ND)
    for e, fc1 in enumerate(weights.fc1_EID):
        hidden = F.linear(x_ND, fc1, None if weights.fc1_bias_EI is None else weights.fc1_bias_EI[e])
        linear, gate = hidden.chunk(2, dim=-1) if gated else (1.0, hidden)
        hidden = linear * ACTIVATIONS[activation](gate)
        y_ND = F.linear(hidden, weights.fc2_EDF[e], None if weights.fc2_bias_ED is None else weights.fc2_bias_ED[e])
        out_ND = out_ND + y_ND * (weights_Nk * (experts_Nk == e)).sum(dim=-1, keepdim=True)
    return out_ND
