"""Experts on CPUs, one after the other, each on the tokens that chose it; forward and backward are written out.

Products write into preallocated buffers (`out=`) whose sizes do not depend on the routing, since buffers of changing
sizes fragment memory. Compiled loops do the work between the products.

Shape letters: N tokens, k experts per token, D width, F expert hidden, I = 2F (linear and gate); R rows sorted by
expert.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sqat.cpu.dropout import keep_scale
from sqat.cpu.threads import available
from sqat.model.dispatch import autocast_dtype, implements, once_differentiable
from sqat.model.moe import by_expert, sort_by_expert
from sqat.seeds import draw_seeds

LEAST_TOKENS = 512  # fewer, mostly a prompt, are not worth a second of compiling
FILL_ROWS = 64
UNIT_ROWS = 2048  # at most this many rows of an expert in one product


def fits(x_ND, experts_Nk, weights_Nk, experts):
    """Whether the loops support these experts: gated SiLU in float32 or bfloat16."""
    swiglu = experts.gated and experts.activation in ("silu", "swish")
    types = autocast_dtype(x_ND) in (torch.float32, torch.bfloat16) and weights_Nk.dtype == torch.float32
    return swiglu and types and len(x_ND) >= LEAST_TOKENS and available()


@implements("run_experts", "cpu", fits=fits)
def run_experts(x_ND, experts_Nk, weights_Nk, experts):
    compute = autocast_dtype(x_ND)
    with torch.autocast("cpu", enabled=False):
        return SortedExperts.apply(x_ND, experts_Nk, weights_Nk, *experts[:4], experts.dropout, compute)


class SortedExperts(torch.autograd.Function):
    """All experts as one differentiable function.

    Dropout's scale s is applied to the k weights, not to the activations: w·(s·a·W + b) = (w·s)·(a·W + b/s). The second
    bias is not added to the rows; its contribution to a token is one product with the token's weights over all experts.
    """

    @staticmethod
    def forward(ctx, x_ND, experts_Nk, weights_Nk, fc1_EID, fc1_bias_EI, fc2_EDF, fc2_bias_ED, p, compute):
        from sqat.cpu.loops import dropped_by, swiglu, weighted_sum

        token_R, place_Nk, ends_E = sort_by_expert(experts_Nk, len(fc1_EID), _block(experts_Nk, fc1_EID, compute))
        units, scale = _units(ends_E.tolist()), keep_scale(p)
        dropped = dropped_by(p, draw_seeds(1)[0] if p else 0)
        x, fc1, fc2 = x_ND.to(compute), fc1_EID.to(compute), fc2_EDF.to(compute)
        weights_Nk = weights_Nk * scale
        bias_EI = fc1.new_zeros(fc1.shape[:2], dtype=torch.float32) if fc1_bias_EI is None else fc1_bias_EI.float()
        x_RD, hidden_RI = x.index_select(0, token_R), x.new_empty(len(token_R), fc1.shape[1])
        y_RD = torch.empty_like(x_RD)
        for e, rows in units:
            hidden = torch.mm(x_RD[rows], fc1[e].T, out=hidden_RI[rows])
            torch.mm(swiglu(hidden, bias_EI[e], rows.start, dropped), fc2[e].T, out=y_RD[rows])
        out_ND = weighted_sum(y_RD, place_Nk, weights_Nk)
        if fc2_bias_ED is not None:
            out_ND.addmm_(by_expert(weights_Nk, experts_Nk, len(fc1)), fc2_bias_ED.to(out_ND.dtype), alpha=1 / scale)
        routed = experts_Nk, weights_Nk, token_R, place_Nk
        ctx.save_for_backward(*routed, x, fc1, bias_EI, fc2, fc2_bias_ED, hidden_RI, y_RD)
        ctx.settings = (units, scale, dropped, x_ND.dtype, fc1_EID.dtype, fc1_bias_EI is not None)
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        from sqat.cpu.loops import swiglu_backward, weighted_sum, weighted_sum_backward

        units, scale, dropped, x_dtype, weight_dtype, biased = ctx.settings
        experts_Nk, weights_Nk, token_R, place_Nk, x, fc1, bias_EI, fc2, fc2_bias, hidden_RI, y_RD = ctx.saved_tensors
        d_y_RD, d_weights_Nk = weighted_sum_backward(grad_ND.float().contiguous(), y_RD, place_Nk, weights_Nk)
        d_fc2_bias = None
        if fc2_bias is not None:
            d_fc2_bias = by_expert(weights_Nk, experts_Nk, len(fc1)).T @ grad_ND / scale
            d_weights_Nk += (grad_ND @ fc2_bias.to(grad_ND.dtype).T / scale).gather(1, experts_Nk)
        x_RD, d_x_RD = x.index_select(0, token_R), torch.empty_like(y_RD)
        d_fc1, d_fc2 = (torch.zeros(w.shape, dtype=weight_dtype) for w in (fc1, fc2))
        d_bias_EI = torch.zeros_like(bias_EI)
        for e, rows in units:
            d_y, hidden = d_y_RD[rows], hidden_RI[rows]
            d_activated = d_y @ fc2[e]
            d_hidden, activated, d_bias = swiglu_backward(d_activated, hidden, bias_EI[e], rows.start, dropped)
            d_bias_EI[e] += d_bias
            d_fc2[e] += d_y.T @ activated
            d_fc1[e] += d_hidden.T @ x_RD[rows]
            torch.mm(d_hidden, fc1[e], out=d_x_RD[rows])
        d_x = weighted_sum(d_x_RD, place_Nk, torch.ones_like(weights_Nk)).to(x_dtype)
        d_fc1_bias = d_bias_EI.to(weight_dtype) if biased else None
        return d_x, None, d_weights_Nk * scale, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, None, None


def _block(experts_Nk: Tensor, fc1_EID: Tensor, compute: torch.dtype) -> int:
    """The number of rows that an expert's share is padded to.

    For every new shape of a bfloat16 product, oneDNN builds a kernel, which costs milliseconds and 256 KB, and caches
    at most 1,024; and shares differ in every step. Padding them, with at most `UNIT_ROWS` at once, leaves 32 shapes.
    Small shares are not padded: there it would cost more than it saves.
    """
    large = experts_Nk.numel() >= 4 * FILL_ROWS * len(fc1_EID)
    return FILL_ROWS if compute == torch.bfloat16 and large else 1


def _units(ends: list[int]) -> list[tuple[int, slice]]:
    """(expert, rows) for every product; an expert that no token chose has none."""
    return [
        (e, slice(start, min(start + UNIT_ROWS, end)))
        for e, (first, end) in enumerate(pairwise([0, *ends]))
        for start in range(first, end, UNIT_ROWS)
    ]
