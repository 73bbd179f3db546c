"""Experts one after the other, on the rows that chose them: the way for CPUs, and for GPUs without grouped products.

Shape letters: N tokens, k experts per token, D width, F expert hidden, I = F (or 2F, gated); R rows sorted by expert,
M = rows of one expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqat.cpu.combine import combine, combine_backward
from sqat.cpu.dispatch import dispatch
from sqat.cpu.expert_activation import expert_activation, hidden_type
from sqat.model.dropout import keep_scale

FILL_ROWS = 64
UNIT_ROWS = 2048  # at most so many rows of an expert in one product


class SortedExperts(torch.autograd.Function):
    """Forward and backward written out: every product is written into its place, and what backward needs again lies in
    buffers of one size, whoever chose what.

    Dropout's scale s is applied to the k weights, not to the activations: w·(s·a·W + b) = (w·s)·(a·W + b/s). The second
    bias is left out of the rows; what it adds to a token is a product with the token's weights over all experts.
    """

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
        token_R, place_Nk, spans = dispatch(experts_Nk, len(fc1_EID), block)
        x, fc1, fc2 = x_ND.to(compute), fc1_EID.to(compute), fc2_EDF.to(compute)
        units, scale = _units(spans), keep_scale(dropout)
        weights_Nk = weights_Nk * scale
        bias = None if fc1_bias_EI is None else fc1_bias_EI.to(hidden_type(compute))
        activate = expert_activation(activation, gated, dropout, len(token_R), x)
        x_RD, hidden_RI = x.index_select(0, token_R), x.new_empty(len(token_R), fc1.shape[1])
        y_RD, buffers = torch.empty_like(x_RD), activate.buffers(hidden_RI)
        for e, rows in units:
            hidden = torch.mm(x_RD[rows], fc1[e].T, out=hidden_RI[rows])
            activated = activate.forward(hidden, None if bias is None else bias[e], rows, buffers)
            torch.mm(activated, fc2[e].T, out=y_RD[rows])
        out_ND = combine(y_RD, place_Nk, weights_Nk)
        if fc2_bias_ED is not None:
            out_ND.addmm_(_by_expert(weights_Nk, experts_Nk, len(fc1)), fc2_bias_ED.to(out_ND.dtype), alpha=1 / scale)
        saved = (x, experts_Nk, weights_Nk, fc1, bias, fc2, fc2_bias_ED, token_R, place_Nk, hidden_RI, y_RD)
        ctx.save_for_backward(*saved, *buffers)
        ctx.settings = (activate, units, scale, x_ND.dtype, fc1_EID.dtype)
        return out_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        activate, units, scale, x_dtype, weight_dtype = ctx.settings
        x, experts_Nk, weights_Nk, fc1, bias, fc2, fc2_bias, token_R, place_Nk, hidden_RI, y_RD, *buffers = (
            ctx.saved_tensors
        )
        d_y_RD, d_weights_Nk = combine_backward(grad_ND, y_RD, place_Nk, weights_Nk)
        d_fc2_bias = None
        if fc2_bias is not None:
            d_fc2_bias = _by_expert(weights_Nk, experts_Nk, len(fc1)).T @ grad_ND / scale
            d_weights_Nk += (grad_ND @ fc2_bias.to(grad_ND.dtype).T / scale).gather(1, experts_Nk)
        x_RD, d_x_RD = x.index_select(0, token_R), torch.empty_like(y_RD)
        d_fc1, d_fc2 = (torch.zeros(w.shape, dtype=weight_dtype, device=w.device) for w in (fc1, fc2))
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=weight_dtype)
        for e, rows in units:
            d_y = d_y_RD[rows]
            d_hidden, activated = activate.backward(
                d_y @ fc2[e],
                hidden_RI[rows],
                None if bias is None else bias[e],
                None if d_bias is None else d_bias[e],
                rows,
                tuple(buffers),
            )
            d_fc2[e] += d_y.T @ activated
            d_fc1[e] += d_hidden.T @ x_RD[rows]
            torch.mm(d_hidden, fc1[e], out=d_x_RD[rows])
        d_x = combine(d_x_RD, place_Nk, torch.ones_like(weights_Nk)).to(x_dtype)
        return d_x, None, d_weights_Nk * scale, d_fc1, d_bias, d_fc2, d_fc2_bias, None, None, None, None


def _by_expert(weights_Nk: Tensor, experts_Nk: Tensor, num_experts: int) -> Tensor:
    """A token's weights over all experts, (N, E)."""
    return weights_Nk.new_zeros(len(weights_Nk), num_experts).scatter_add_(1, experts_Nk, weights_Nk)


def _block(num_selections: int, num_experts: int, compute: torch.dtype, device: torch.device) -> int:
    """To how many rows an expert's share is filled up.

    On CPUs a bfloat16 product of a new shape costs milliseconds and 256 KB for a kernel to be made, of which oneDNN
    remembers 1,024, and shares differ every time. Filling them up, and taking at most `UNIT_ROWS` at once, leaves 32
    shapes. Small shares are left alone: there it would cost more than it saves.
    """
    worthwhile = device.type == "cpu" and compute == torch.bfloat16 and num_selections >= 4 * FILL_ROWS * num_experts
    return FILL_ROWS if worthwhile else 1


def _units(spans: list[slice]) -> list[tuple[int, slice]]:
    """(expert, rows) of every piece to compute at once; an expert that nobody chose has none."""
    return [
        (e, slice(start, min(start + UNIT_ROWS, span.stop)))
        for e, span in enumerate(spans)
        for start in range(span.start, span.stop, UNIT_ROWS)
    ]
