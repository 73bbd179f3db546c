"""Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split layout of Llama.

Pair j of a head is (x[j], x[j + C/2]) and is turned by position · theta^(-2j/C). RxNN pairs neighbours instead;
`sqat.checkpoint.rxnn` permutes weights between the two, so this is the only rotation in the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqat.model.dispatch import is_traced, like, once_differentiable, operation


class RotaryTables(NamedTuple):
    """Cosines and sines in float32, (T, C/2) or (B, 1, T, C/2)."""

    cos: Tensor
    sin: Tensor


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> RotaryTables:
    """Tables for positions (T,) shared by all rows, or (B, T)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float().unsqueeze(-1) / theta**exponents
    if angles.dim() == 3:
        angles = angles.unsqueeze(1)  # the same for every head
    return RotaryTables(angles.cos(), angles.sin())


def rotate(x_BHTC: Tensor, tables: RotaryTables, dtype: torch.dtype | None = None) -> Tensor:
    """Turn every pair of `x_BHTC` (B, H, T, C) by its position's angle, in float32 or wider.

    The result has the memory layout of the input and its type, or `dtype`.
    """
    if is_traced(x_BHTC, tables):
        tables = RotaryTables(*(like(table, x_BHTC) for table in tables))
        exact = torch.promote_types(x_BHTC.dtype, torch.float32)
        return rotate_naive(x_BHTC.to(exact), tables).to(dtype or x_BHTC.dtype)
    return _Rotate.apply(x_BHTC, *tables, dtype or x_BHTC.dtype)


def rotate_naive(x_BHTC: Tensor, tables: RotaryTables) -> Tensor:
    """The definition in two lines; tests hold :func:`rotate` to it."""
    first, second = x_BHTC.chunk(2, dim=-1)
    cos, sin = tables
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Rotate(torch.autograd.Function):
    """The gradient is the gradient of the output turned back, so only the tables are kept for it."""

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x_BHTC.dtype
        return turn(x_BHTC, cos, sin, 1.0, dtype, training=ctx.needs_input_grad[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return turn(grad_BHTC, cos, sin, -1.0, ctx.dtype, training=True), None, None, None


@operation
def turn(
    x_BHTC: Tensor, cos: Tensor, sin: Tensor, sign: float, dtype: torch.dtype, *, training: bool = False
) -> Tensor:
    """Rotation by the angles times `sign` (1.0, or -1.0 for back), without gradients. Only what runs often (`training`)
    is worth compiling for.
    """
    exact = x_BHTC.to(torch.promote_types(x_BHTC.dtype, torch.float32))
    first, second = exact.chunk(2, dim=-1)
    out_BHTC = torch.empty_like(exact)
    out_first, out_second = out_BHTC.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
    return out_BHTC.to(dtype)
