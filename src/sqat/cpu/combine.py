"""The experts' rows put back together as tokens: one pass of a compiled loop, or torch's operators.

Shape letters: N tokens, k experts per token, R rows sorted by expert, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat import cpu as kernels

COMPILED_TOKENS = 512  # for fewer (a prompt, mostly) a second of compiling would not be worth it


def combine(y_RD: Tensor, place_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
    """Σ_k weights[n, k] · y[place[n, k]], (N, D), in the type of the weights."""
    if _has_loop(y_RD, weights_Nk):
        from sqat.cpu.rows import weighted_sum

        return weighted_sum(y_RD, place_Nk, weights_Nk)
    return F.embedding_bag(place_Nk, y_RD.to(weights_Nk.dtype), per_sample_weights=weights_Nk, mode="sum")


def combine_backward(grad_ND: Tensor, y_RD: Tensor, place_Nk: Tensor, weights_Nk: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `y_RD`, zero in rows that no token has, and of the weights."""
    if _has_loop(y_RD, weights_Nk):
        from sqat.cpu.rows import weighted_sum_backward

        return weighted_sum_backward(grad_ND.float().contiguous(), y_RD, place_Nk, weights_Nk)
    d_y_RD, d_weights = torch.zeros_like(y_RD), []
    for place_N, weight_N in zip(place_Nk.unbind(1), weights_Nk.unbind(1), strict=True):
        d_y_RD.index_copy_(0, place_N, (grad_ND * weight_N.unsqueeze(1)).to(y_RD.dtype))
        d_weights.append((y_RD.index_select(0, place_N) * grad_ND).sum(dim=-1))
    return d_y_RD, torch.stack(d_weights, dim=1).to(weights_Nk.dtype)


def _has_loop(y_RD: Tensor, weights_Nk: Tensor) -> bool:
    types = y_RD.dtype in (torch.float32, torch.bfloat16) and weights_Nk.dtype == torch.float32
    return types and len(weights_Nk) >= COMPILED_TOKENS and y_RD.device.type == "cpu" and kernels.available()
