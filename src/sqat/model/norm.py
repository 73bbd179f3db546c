"""Normalisation layers: torch's own, chosen by name, and RMSNorm with a backward pass that writes little.

Shape letters: N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sqat import cpu as kernels


def make_norm(kind: str | None, hidden_size: int, eps: float | None) -> nn.Module:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450) over the last axis; for `None`, the identity.

    `eps` of `None` is torch's own default: machine epsilon of the input for RMSNorm, 1e-5 for LayerNorm.
    """
    if kind is None:
        return nn.Identity()
    if kind == "rmsnorm":
        return RMSNorm(hidden_size, eps=eps)
    return nn.LayerNorm(hidden_size, eps=1e-5 if eps is None else eps)


class RMSNorm(nn.RMSNorm):
    """`x / sqrt(mean(x²) + eps) · weight` (arXiv 1910.07467, eq. 4), as `nn.RMSNorm` computes it.

    On CPUs torch takes it apart into operations that each write their result, and so does its backward pass; training
    in float32 there goes through loops of our own, in a seventh of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # the compiler fuses the plain form
        exact = x.dtype == self.weight.dtype == torch.float32
        if training and exact and x.device.type == "cpu" and kernels.available():
            eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
            return _RMSNorm.apply(x, self.weight, eps)
        return super().forward(x)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        from sqat.cpu.norm import rms_norm

        x_ND = x.reshape(-1, x.shape[-1]).contiguous()
        out_ND, scale_N = rms_norm(x_ND, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, scale_N)
        return out_ND.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        from sqat.cpu.norm import rms_norm_backward

        x_ND, weight_D, scale_N = ctx.saved_tensors
        d_x_ND, d_weight_D = rms_norm_backward(grad.reshape(x_ND.shape).contiguous(), x_ND, weight_D, scale_N)
        return d_x_ND.view(grad.shape), d_weight_D, None
