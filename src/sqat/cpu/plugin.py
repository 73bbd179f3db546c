"""Registers the CPU implementations of the model's operations; importing this module is enough.

Compiled loops are imported on first use, since importing numba takes a second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqat.cpu import attend, dropout, experts
from sqat.cpu.threads import available
from sqat.model.dispatch import implements, once_differentiable

__all__ = ["attend", "dropout", "experts"]

LOOP_TYPES = (torch.float32, torch.bfloat16)


def _fits_norm(x: Tensor, weight_D: Tensor, eps: float | None) -> bool:
    same = x.dtype == weight_D.dtype == torch.float32 and x.shape[-1] == len(weight_D)  # else torch's error
    return same and torch.is_grad_enabled() and available()


@implements("rms_norm", "cpu", fits=_fits_norm)
def rms_norm(x: Tensor, weight_D: Tensor, eps: float | None) -> Tensor:
    out: Tensor = _RMSNorm.apply(x, weight_D, torch.finfo(x.dtype).eps if eps is None else eps)
    return out


class _RMSNorm(torch.autograd.Function):
    """Seven times as fast as torch, which splits norms into operations that each write their result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        from sqat.cpu.loops import rms_norm

        x_ND = x.reshape(-1, x.shape[-1]).contiguous()
        out_ND, scale_N = rms_norm(x_ND, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, scale_N)
        return out_ND.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from sqat.cpu.loops import rms_norm_backward

        x_ND, weight_D, scale_N = ctx.saved_tensors
        d_x_ND, d_weight_D = rms_norm_backward(grad.reshape(x_ND.shape).contiguous(), x_ND, weight_D, scale_N)
        return d_x_ND.view(grad.shape), d_weight_D, None


def _fits_turn(x_BHTC, cos, sin, sign, dtype, *, training=False):
    types = x_BHTC.dtype in LOOP_TYPES and dtype in LOOP_TYPES and cos.dtype == torch.float32
    return training and types and x_BHTC.transpose(1, 2).is_contiguous() and available()


@implements("turn", "cpu", fits=_fits_turn)
def turn(x_BHTC: Tensor, cos: Tensor, sin: Tensor, sign: float, dtype: torch.dtype, **_: Any) -> Tensor:
    from sqat.cpu.loops import rotate

    return rotate(x_BHTC.transpose(1, 2), cos.contiguous(), sin.contiguous(), sign, dtype).transpose(1, 2)


@implements("router_softmax", "cpu")
def router_softmax(logits_NE: Tensor) -> Tensor:
    """Softmax over columns, including two transposes: torch's loop over such short rows takes five times as long."""
    return logits_NE.T.contiguous().softmax(dim=0).T.contiguous()


def _fits_losses(logits_RV: Tensor, *_: Any, **__: Any) -> bool:
    return logits_RV.dtype in LOOP_TYPES and available()


@implements("cross_entropy", "cpu", fits=_fits_losses)
def cross_entropy(logits_RV, bias_V, targets_R, train, d_bias_V=None):
    from sqat.cpu.loops import cross_entropy

    bias = torch.zeros(logits_RV.shape[1]) if bias_V is None else bias_V.float()
    d_bias_TV = torch.zeros(torch.get_num_threads(), logits_RV.shape[1]) if train else None
    losses_R, hits_R = cross_entropy(logits_RV, bias, targets_R, d_bias_TV)
    if d_bias_V is not None and d_bias_TV is not None:
        d_bias_V += d_bias_TV.sum(dim=0)
    return losses_R, hits_R
