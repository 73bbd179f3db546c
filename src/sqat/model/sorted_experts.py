"""Experts one after the other, on the rows that chose them: the way for CPUs, and for GPUs without grouped products.

Shape letters: N tokens, k experts per token, D width, F expert hidden, I = F (or 2F, gated); R rows sorted by expert,
M = rows of one expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.model.dispatch import dispatch
from sqat.model.dropout import keep_scale
from sqat.model.expert_activation import expert_activation

FILL_ROWS = 64
UNIT_ROWS = 2048  # at most so many rows of an expert in one product


class SortedExperts(torch.autograd.Function):
    """Forward and backward written out: rows are gathered and summed by torch's fused kernels (`index_select`,
    `embedding_bag`), and what backward needs again lies in buffers of one size, whoever chose what.

    Dropout's scale s is applied to the k weights, not to the activations: w·(s·a·W + b) = (w·s)·(a·W + b/s).
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
        fc1_bias = None if fc1_bias_EI is None else fc1_bias_EI.to(compute)
        fc2_bias = None if fc2_bias_ED is None else (fc2_bias_ED / scale).to(compute)
        weights_Nk = weights_Nk * scale
        activate = expert_activation(activation, gated, dropout, len(token_R), x)
        y_RD = torch.empty(len(token_R), fc2.shape[1], dtype=weights_Nk.dtype, device=x.device)
        hidden_RI = x.new_empty(len(token_R), fc1.shape[1])
        buffers = activate.buffers(hidden_RI)
        for e, rows in units:
            hidden = _linear(x.index_select(0, token_R[rows]), fc1[e], fc1_bias, e, hidden_RI[rows])
            activated = activate.forward(hidden, rows, buffers)
            y_RD[rows] = F.linear(activated, fc2[e], None if fc2_bias is None else fc2_bias[e])
        ctx.save_for_backward(x, weights_Nk, fc1, fc2, token_R, place_Nk, hidden_RI, y_RD, *buffers)
        ctx.settings = (activate, units, scale, x_ND.dtype, fc1_EID.dtype, fc2_bias is not None)
        return F.embedding_bag(place_Nk, y_RD, per_sample_weights=weights_Nk, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        activate, units, scale, x_dtype, weight_dtype, biased = ctx.settings
        x, weights_Nk, fc1, fc2, token_R, place_Nk, hidden_RI, y_RD, *buffers = ctx.saved_tensors
        grad, weight_R1 = grad_ND.to(x.dtype), x.new_zeros(len(token_R), 1)
        weight_R1[place_Nk.flatten()] = weights_Nk.to(x.dtype).view(-1, 1)  # zero in rows that only fill up
        d_x_RD = torch.empty_like(y_RD)
        d_fc1, d_fc2 = (torch.zeros(w.shape, dtype=weight_dtype, device=w.device) for w in (fc1, fc2))
        d_fc1_bias, d_fc2_bias = (torch.zeros_like(d[:, :, 0]) if biased else None for d in (d_fc1, d_fc2))
        for e, rows in units:
            token = token_R[rows]
            grad_y = grad.index_select(0, token).mul_(weight_R1[rows])
            d_hidden, activated = activate.backward(grad_y @ fc2[e], hidden_RI[rows], rows, tuple(buffers))
            d_fc2[e] += grad_y.T @ activated
            d_fc1[e] += d_hidden.T @ x.index_select(0, token)
            if d_fc1_bias is not None and d_fc2_bias is not None:
                d_fc1_bias[e] += _sum_rows(d_hidden)
                d_fc2_bias[e] += _sum_rows(grad_y)
            d_x_RD[rows] = d_hidden @ fc1[e]
        d_x = F.embedding_bag(place_Nk, d_x_RD, mode="sum").to(x_dtype)
        # The derivative of Σ w·y by w is y.
        d_weights = [(y_RD.index_select(0, place_N) * grad_ND).sum(dim=-1) for place_N in place_Nk.unbind(1)]
        d_weights_Nk = torch.stack(d_weights, dim=1).to(weights_Nk.dtype) * scale
        if d_fc2_bias is not None:
            d_fc2_bias /= scale
        return d_x, None, d_weights_Nk, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, None, None, None, None


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


def _linear(x_MD: Tensor, weight_ID: Tensor, bias_EI: Tensor | None, e: int, out_MI: Tensor) -> Tensor:
    if bias_EI is None:
        return torch.mm(x_MD, weight_ID.T, out=out_MI)
    return torch.addmm(bias_EI[e], x_MD, weight_ID.T, out=out_MI)


def _sum_rows(x_MI: Tensor) -> Tensor:
    """Sum over rows, as a product with ones: `sum` over bfloat16 rows is several times slower."""
    return (x_MI.new_ones(1, len(x_MI)) @ x_MI).squeeze(0)
