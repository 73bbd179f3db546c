"""The experts' arithmetic: tokens sorted by expert, one matrix product per expert and layer, results put back.

Shape letters: N tokens, k experts per token, D width, F expert hidden, I = F (or 2F, gated); M = rows of one expert.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.model.dispatch import dispatch
from sqat.model.dropout import dropout_mask
from sqat.model.feedforward import ACTIVATIONS

FILL_ROWS = 64


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
    with torch.autocast(device, enabled=False):
        return _SortedExperts.apply(x_ND, experts_Nk, weights_Nk, *weights, activation, gated, dropout, compute)


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


_ACTIVATION_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": torch.ops.aten.silu_backward.default,
    "swish": torch.ops.aten.silu_backward.default,
    "gelu": torch.ops.aten.gelu_backward.default,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward.default(grad, x, 0),
    "sigmoid": lambda grad, x: torch.ops.aten.sigmoid_backward.default(grad, torch.sigmoid(x)),
    "linear": lambda grad, x: grad,
}


class _SortedExperts(torch.autograd.Function):
    """Forward and backward written out, so that buffers are one expert's share and nothing is kept twice."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        experts_Nk: Tensor,
        weights_Nk: Tensor,
        fc1_EID: Tensor,
        fc1_bias_EI: Tensor | None,
        fc2_EDF: Tensor,
        fc2_bias_ED: Tensor | None,
        activation: str,
        gated: bool,
        dropout: float,
        compute: torch.dtype,
    ) -> Tensor:
        block = _block(experts_Nk.numel(), len(fc1_EID), compute, x_ND.device)
        token, place, spans = dispatch(experts_Nk, len(fc1_EID), block)
        x, fc1, fc2 = x_ND.to(compute), fc1_EID.to(compute), fc2_EDF.to(compute)
        y_sorted = torch.empty(len(token), x.shape[1], dtype=compute, device=x.device)
        hiddens, noises = [], []
        for e, rows in enumerate(spans):
            hidden = F.linear(x[token[rows]], fc1[e], _row(fc1_bias_EI, e, compute))
            activated = _activate(hidden, activation, gated)
            noise = dropout_mask(activated, dropout) if dropout else None
            if noise is not None:
                activated *= noise
            y_sorted[rows] = F.linear(activated, fc2[e], _row(fc2_bias_ED, e, compute))
            hiddens.append(hidden)
            noises.append(noise)
        ctx.save_for_backward(x, weights_Nk, fc1, fc2, fc2_bias_ED, token, place, *hiddens, *noises)
        ctx.settings = (activation, gated, spans, x_ND.dtype, fc1_EID.dtype, fc1_bias_EI is not None)
        chosen = zip(place.unbind(1), weights_Nk.unbind(1), strict=True)
        parts = (y_sorted[rows].to(weights_Nk.dtype).mul_(weight.unsqueeze(1)) for rows, weight in chosen)
        return reduce(torch.add, parts)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        activation, gated, spans, x_dtype, weight_dtype, biased = ctx.settings
        x, weights_Nk, fc1, fc2, fc2_bias, token, place, *saved = ctx.saved_tensors
        hiddens, noises = saved[: len(spans)], saved[len(spans) :]
        grad, weight_sorted = grad_ND.to(x.dtype), weights_Nk.new_zeros(len(token), 1)
        weight_sorted[place.flatten()] = weights_Nk.flatten().unsqueeze(1)  # zero in rows that only fill up
        d_weight_sorted = torch.empty_like(weight_sorted)
        d_x_sorted = torch.empty(len(token), x.shape[1], dtype=x.dtype, device=x.device)
        d_fc1, d_fc2 = (torch.empty(w.shape, dtype=weight_dtype, device=w.device) for w in (fc1, fc2))
        d_fc1_bias, d_fc2_bias = (torch.empty_like(d[:, :, 0]) if biased else None for d in (d_fc1, d_fc2))
        for e, (rows, hidden, noise) in enumerate(zip(spans, hiddens, noises, strict=True)):
            grad_y, weight = grad[token[rows]], weight_sorted[rows]
            activated, d_activated = _activate(hidden, activation, gated), grad_y @ fc2[e]
            if noise is not None:
                activated *= noise
            d_weight_sorted[rows] = (activated * d_activated).sum(dim=-1, keepdim=True, dtype=weight.dtype)
            if d_fc2_bias is not None:
                d_weight_sorted[rows] += (grad_y @ fc2_bias[e].to(x.dtype)).unsqueeze(1)
            weight = weight.to(x.dtype)
            grad_y *= weight
            d_activated *= weight if noise is None else noise * weight
            d_hidden = _activate_backward(d_activated, hidden, activation, gated)
            d_fc2[e] = grad_y.T @ activated
            d_fc1[e] = d_hidden.T @ x[token[rows]]
            if d_fc1_bias is not None and d_fc2_bias is not None:
                d_fc1_bias[e] = d_hidden.sum(dim=0, dtype=weight_dtype)
                d_fc2_bias[e] = grad_y.sum(dim=0, dtype=weight_dtype)
            d_x_sorted[rows] = d_hidden @ fc1[e]
        d_x = reduce(torch.add, (d_x_sorted[rows].to(x_dtype) for rows in place.unbind(1)))
        d_weights = d_weight_sorted[place].squeeze(-1)
        return d_x, None, d_weights, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, None, None, None, None


def _block(num_selections: int, num_experts: int, compute: torch.dtype, device: torch.device) -> int:
    """To how many rows an expert's share is filled up.

    On CPUs a bfloat16 product of a new shape costs milliseconds for a kernel to be made, and shares differ every time;
    filling them up leaves few shapes. Small shares are left alone: there it would cost more than it saves.
    """
    worthwhile = device.type == "cpu" and compute == torch.bfloat16 and num_selections >= 4 * FILL_ROWS * num_experts
    return FILL_ROWS if worthwhile else 1


def _row(bias_EX: Tensor | None, e: int, dtype: torch.dtype) -> Tensor | None:
    return None if bias_EX is None else bias_EX[e].to(dtype)


def _activate(hidden_MI: Tensor, activation: str, gated: bool) -> Tensor:
    """The activation, in memory of its own."""
    if gated:
        linear, gate = hidden_MI.chunk(2, dim=-1)
        return linear * ACTIVATIONS[activation](gate)
    return hidden_MI.clone() if activation == "linear" else ACTIVATIONS[activation](hidden_MI)


def _activate_backward(grad_MF: Tensor, hidden_MI: Tensor, activation: str, gated: bool) -> Tensor:
    backward = _ACTIVATION_BACKWARD[activation]
    if not gated:
        return backward(grad_MF, hidden_MI)
    linear, gate = hidden_MI.chunk(2, dim=-1)
    d_linear = grad_MF * ACTIVATIONS[activation](gate)
    return torch.cat((d_linear, backward(grad_MF * linear, gate)), dim=-1)
