"""Mixture of experts: a router sends every token to its k best experts. No token is dropped.

Shape letters: N tokens, E experts, k experts per token, D width, F expert hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.model.experts import ExpertWeights, run_experts


class RouterStats(NamedTuple):
    """One layer's routing, as sums over tokens, so that batches add up; carries gradients where probabilities are
    concerned.
    """

    load_E: Tensor  # selections that chose expert e (each token makes k)
    probability_E: Tensor  # sum of router probability over all tokens
    selected_E: Tensor  # sum of router probability over the tokens that chose e
    entropy: Tensor  # sum of the router distribution's entropy, nats
    tokens: Tensor  # how many tokens were counted


class MoE(nn.Module):
    """Top-k routed experts: softmax over all experts, the k largest weights renormalised to sum to one (as Mixtral,
    arXiv 2401.04088).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
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
        with torch.autocast(x_ND.device.type, enabled=False):  # routing is decided in full precision
            probs_NE = _softmax(F.linear(x_ND.float(), self.router.weight.float()))
        selected_Nk, experts_Nk = probs_NE.topk(self.experts_per_token, dim=-1)
        weights_Nk = selected_Nk / (selected_Nk.sum(dim=-1, keepdim=True) + 1e-9)
        weights = ExpertWeights(self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias)
        dropout = self.dropout if self.training else 0.0
        y_ND = run_experts(x_ND, experts_Nk, weights_Nk, weights, self.activation, self.gated, dropout)
        real_N = None if real_BT is None else real_BT.flatten()
        return y_ND.to(x_BTD.dtype).view(x_BTD.shape), router_stats(probs_NE, selected_Nk, experts_Nk, real_N)


def _softmax(logits_NE: Tensor) -> Tensor:
    """Softmax over the experts. On a CPU in columns: torch's loop over rows as short as these takes five times longer,
    the copies there and back included.
    """
    if logits_NE.device.type != "cpu":
        return logits_NE.softmax(dim=-1)
    return logits_NE.T.contiguous().softmax(dim=0).T.contiguous()


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
        load_E=_sum_by_expert(count_Nk, experts_Nk, probs_NE.shape[-1]),
        probability_E=probs_NE.sum(dim=0),
        selected_E=_sum_by_expert(selected_Nk, experts_Nk, probs_NE.shape[-1]),
        entropy=entropy_N.sum(),
        tokens=count_Nk[:, 0].sum(),
    )


def _sum_by_expert(values_Nk: Tensor, experts_Nk: Tensor, num_experts: int) -> Tensor:
    if values_Nk.device.type == "cpu":
        return values_Nk.new_zeros(num_experts).index_add(0, experts_Nk.flatten(), values_Nk.flatten())
    # On GPUs, thousands of additions to the same few places would queue up.
    return values_Nk.new_zeros(len(values_Nk), num_experts).scatter_add(1, experts_Nk, values_Nk).sum(dim=0)
