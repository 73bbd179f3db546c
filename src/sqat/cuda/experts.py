"""Experts on GPUs, without waiting for the device: grouped matrix products, and batched ones where tokens are few.

Elsewhere (other types than bfloat16, older GPUs, other activations) the model's plain code runs.

Shape letters: N tokens, k experts per token, E experts, D width, F expert hidden, I = 2F (linear, gate); R rows of the
buffer sorted by expert, S = N·k selections.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.model.dispatch import autocast_dtype, implements, once_differentiable
from sqat.model.feedforward import activate, dropout
from sqat.model.moe import Experts, SortedRows, by_expert, sort_by_expert

ROWS = 8  # an expert's rows are padded to a multiple: 16 bytes of bfloat16, which the kernels require of every stride
MAX_EXPERTS = 1023  # of torch's kernel
FEW_TOKENS = 256  # up to here all experts' weights are read anyway, and kernel launches dominate

# Public since torch 2.10; looked up here so that tests can put the definition in its place.
grouped_mm = getattr(F, "grouped_mm", torch._grouped_mm)

_aten = torch.ops.aten


def _takes_few(x_ND: Tensor, *_: Any) -> bool:
    """Whether there are few tokens and no gradients, as in decoding."""
    return len(x_ND) <= FEW_TOKENS and not torch.is_grad_enabled()


@implements("run_experts", "cuda", fits=_takes_few, compiles=True)
def run_experts_few(x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, experts: Experts) -> Tensor:
    """As :func:`sqat.model.moe.run_experts`, for few tokens: one product for all experts' rows."""
    compute, fc1_bias, fc2_bias = autocast_dtype(x_ND), experts.fc1_bias_EI, experts.fc2_bias_ED
    (num_tokens, per_token), num_experts = experts_Nk.shape, len(experts.fc1_EID)
    gathered = num_tokens * per_token <= num_experts
    with torch.autocast(x_ND.device.type, enabled=False):
        x, fc1, fc2 = x_ND.to(compute), experts.fc1_EID.to(compute), experts.fc2_EDF.to(compute)
        if gathered:  # the chosen experts' weights, S of them, on one row each
            chosen_S = experts_Nk.flatten()
            fc1, fc2 = fc1.index_select(0, chosen_S), fc2.index_select(0, chosen_S)
            fc1_bias, fc2_bias = (None if b is None else b.index_select(0, chosen_S) for b in (fc1_bias, fc2_bias))
            x = x.repeat_interleave(per_token, dim=0).unsqueeze(1)
        else:  # every expert on every token: its weights have to be read whatever the number of rows
            x = x.expand(num_experts, *x.shape)
        hidden = _batched_linear(x, fc1, fc1_bias)
        activated = dropout(activate(hidden, experts.activation, experts.gated), experts.dropout, training=True)
        y = _batched_linear(activated, fc2, fc2_bias)
        if gathered:
            return (y.view(num_tokens, per_token, -1) * weights_Nk.unsqueeze(-1)).sum(dim=1)
        return (y * by_expert(weights_Nk, experts_Nk, num_experts).T.unsqueeze(-1)).sum(dim=0)


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(G, M, in) with weights (G, out, in) and biases (G, out)."""
    if bias is None:
        return torch.bmm(x, weight.transpose(1, 2))
    return torch.baddbmm(bias.to(x.dtype).unsqueeze(1), x, weight.transpose(1, 2))


def supports_grouped(x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, experts: Experts) -> bool:
    """Whether these experts are gated SiLU, and torch has a kernel that computes all groups at once: on GPUs of compute
    capability 9 and 10, in bfloat16, for widths that are multiples of 8. Elsewhere it loops over the groups and waits.
    """
    if not experts.gated or experts.activation not in ("silu", "swish"):
        return False
    widths = (*experts.fc1_EID.shape[1:], experts.fc2_EDF.shape[2])
    sizes = len(x_ND) > 0 and len(experts.fc1_EID) <= MAX_EXPERTS and not any(width % ROWS for width in widths)
    return sizes and autocast_dtype(x_ND) == torch.bfloat16 and _has_kernel(x_ND.device.index or 0)


def _has_kernel(device: int) -> bool:
    # The properties, not the capability: the compiler takes them for constants.
    return torch.version.cuda is not None and torch.cuda.get_device_properties(device).major in (9, 10)


@implements("run_experts", "cuda", fits=supports_grouped, compiles=True)
def run_experts_grouped(x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, experts: Experts) -> Tensor:
    """As :func:`sqat.model.moe.run_experts`, by grouped products; see :func:`supports_grouped`."""
    compute = autocast_dtype(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        return GroupedExperts.apply(x_ND, experts_Nk, weights_Nk, *experts[:4], experts.dropout, compute)


def grouped_mm_naive(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
    """The definition, for tests: rows (R, K) · (E, K, M), or per group of columns (K, R) · (R, M) to (E, K, M)."""
    spans = [slice(start, end) for start, end in pairwise([0, *offs.tolist()])]
    if b.dim() == 3:
        return torch.cat([a[span] @ b[e] for e, span in enumerate(spans)])
    return torch.stack([a[:, span] @ b[span] for span in spans])


def arrange(experts_Nk: Tensor, num_experts: int) -> SortedRows:
    """Rows sorted by expert, as the kernels want them: `ends_E` are int32, and the last expert's rows reach to the end
    of the buffer, so that none is left undefined. (No group is empty: kernels have been seen to hang then, or to leave
    garbage in the gradient of a weight.)
    """
    rows = sort_by_expert(experts_Nk, num_experts, ROWS)
    rows.ends_E[-1:].fill_(len(rows.token_R))
    return rows._replace(ends_E=rows.ends_E.int())


class GroupedExperts(torch.autograd.Function):
    """Forward and backward written out: between them only the rows before the activation are kept.

    The first biases are one more column of their weights, beside a column of ones in `x` (and `ROWS` of them, for the
    kernel's sake): adding them, and summing their gradient, costs no pass over the rows.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, experts_Nk: Tensor, weights_Nk: Tensor, *others: Any) -> Tensor:
        fc1_EID, fc1_bias_EI, fc2_EDF, fc2_bias_ED, p, compute = others
        rows = arrange(experts_Nk, len(fc1_EID))
        x, fc1, fc2 = x_ND.to(compute), fc1_EID.to(compute), fc2_EDF.to(compute)
        if fc1_bias_EI is not None:
            x = torch.cat((x, x.new_ones(len(x), ROWS)), dim=1)
            fc1 = torch.cat((fc1, F.pad(fc1_bias_EI.to(compute).unsqueeze(-1), (0, ROWS - 1))), dim=-1)
        hidden_RI = grouped_mm(x.index_select(0, rows.token_R), fc1.transpose(1, 2), offs=rows.ends_E)
        activated_RF, kept_RF = activate(hidden_RI, "silu", gated=True), None
        if p:
            activated_RF, kept_RF = torch.native_dropout(activated_RF, p, True)
        y_RD = grouped_mm(activated_RF, fc2.transpose(1, 2), offs=rows.ends_E)
        out_ND = (y_RD[rows.place_Nk] * weights_Nk.unsqueeze(-1)).sum(dim=1)
        if fc2_bias_ED is not None:
            out_ND += by_expert(weights_Nk, experts_Nk, len(fc1)) @ fc2_bias_ED.to(out_ND.dtype)
        ctx.save_for_backward(x, experts_Nk, weights_Nk, fc1, fc2, fc2_bias_ED, hidden_RI, kept_RF, *rows)
        ctx.settings = (1.0 / (1.0 - p), x_ND.dtype, fc1_EID.dtype, fc1_bias_EI is not None)
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        scale, x_dtype, weight_dtype, has_bias = ctx.settings
        x, experts_Nk, weights_Nk, fc1, fc2, fc2_bias_ED, hidden_RI, kept_RF, token_R, place_Nk, ends_E = (
            ctx.saved_tensors
        )
        width = grad_ND.shape[1]
        grad_RD = grad_ND.to(x.dtype).index_select(0, token_R)
        weight_R1 = weights_Nk.new_zeros(len(token_R), 1)  # zero in padding rows
        weight_R1.view(-1).scatter_(0, place_Nk.flatten(), weights_Nk.flatten())
        linear_RF, gate_RF = hidden_RI.chunk(2, dim=-1)
        silu_RF = F.silu(gate_RF)
        activated_RF = linear_RF * silu_RF
        d_activated_RF = grouped_mm(grad_RD, fc2, offs=ends_E)
        if kept_RF is not None:
            activated_RF = _aten.native_dropout_backward(activated_RF, kept_RF, scale)
        d_weight_R = (activated_RF * d_activated_RF).sum(dim=-1, dtype=weights_Nk.dtype)
        weight_R1 = weight_R1.to(x.dtype)
        d_fc2 = grouped_mm((grad_RD * weight_R1).T, activated_RF, offs=ends_E)
        d_activated_RF = d_activated_RF * weight_R1
        if kept_RF is not None:
            d_activated_RF = _aten.native_dropout_backward(d_activated_RF, kept_RF, scale)
        d_gate_RF = _aten.silu_backward.default(d_activated_RF * linear_RF, gate_RF)
        d_hidden_RI = torch.cat((d_activated_RF * silu_RF, d_gate_RF), dim=-1)
        d_fc1 = grouped_mm(d_hidden_RI.T, x.index_select(0, token_R), offs=ends_E)
        d_x_RD = grouped_mm(d_hidden_RI, fc1[:, :, :width], offs=ends_E)
        d_x = d_x_RD[place_Nk].sum(dim=1, dtype=torch.promote_types(x_dtype, torch.float32)).to(x_dtype)
        d_weights, d_fc2_bias = d_weight_R[place_Nk], None
        if fc2_bias_ED is not None:
            exact, shares_NE = grad_ND.to(weights_Nk.dtype), by_expert(weights_Nk, experts_Nk, len(fc1))
            with torch.autocast(grad_ND.device.type, enabled=False):  # it may be on around `backward`
                d_weights = d_weights + (exact @ fc2_bias_ED.to(exact.dtype).T).gather(1, experts_Nk)
                d_fc2_bias = (shares_NE.T @ exact).to(weight_dtype)
        d_fc1_bias = d_fc1[:, :, width].to(weight_dtype) if has_bias else None
        d_fc1, d_fc2 = d_fc1[:, :, :width].to(weight_dtype), d_fc2.to(weight_dtype)
        return d_x, None, d_weights, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias, None, None
