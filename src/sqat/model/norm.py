"""Normalisation layers: torch's own, chosen by name, and RMSNorm with a backward pass that writes little.

Shape letters: N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
    in float32 there goes another way, in little more than half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # the compiler fuses the plain form
        if training and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
            return _RMSNorm.apply(x, self.weight, eps)
        return super().forward(x)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (x * scale).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, scale = ctx.saved_tensors
        unit = x * scale
        product_ND = (grad * unit).flatten(0, -2)
        along = (product_ND @ weight_D).div_(x.shape[-1]).view_as(scale)  # how far the gradient points along x
        d_x = unit.mul_(along).neg_().addcmul_(grad, weight_D).mul_(scale)
        return d_x, product_ND.sum(dim=0), None
