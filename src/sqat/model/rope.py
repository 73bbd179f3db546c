"""Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split layout of Llama.

Pair j of a head is (x[j], x[j + C/2]) and is turned by position · theta^(-2j/C). RxNN pairs neighbours instead;
`sqat.checkpoint.rxnn` permutes weights between the two, so that this is the only rotation in the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqat import cpu as kernels


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
    """Turn every pair of `x_BHTC` (B, H, T, C) by its position's angle, in float32.

    The result has the memory layout of the input and its type, or `dtype`.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain form better
        return rotate_naive(x_BHTC.float(), tables).to(dtype or x_BHTC.dtype)
    return _Rotate.apply(x_BHTC, *tables, dtype or x_BHTC.dtype)


def rotate_naive(x_BHTC: Tensor, tables: RotaryTables) -> Tensor:
    """The definition, for tests."""
    first, second = x_BHTC.chunk(2, dim=-1)
    cos, sin = tables
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Rotate(torch.autograd.Function):
    """The gradient is turned back by the same angles; nothing but the tables is kept for it."""

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x_BHTC.dtype
        training = ctx.needs_input_grad[0]  # a prompt is read once: not worth compiling for
        return _turn(x_BHTC, cos, sin, 1.0, dtype, compiled=training)

    @staticmethod
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad_BHTC, cos, sin, -1.0, ctx.dtype, compiled=True), None, None, None


def _turn(x_BHTC: Tensor, cos: Tensor, sin: Tensor, sign: float, dtype: torch.dtype, *, compiled: bool) -> Tensor:
    """Rotation by the angles, or back for `sign` -1.0; by a compiled loop where wanted and possible."""
    x_BTHC = x_BHTC.transpose(1, 2)
    if compiled and x_BTHC.is_contiguous() and _has_loop(x_BHTC, cos, dtype):
        from sqat.cpu.rope import rotate as rotate_in_one_pass

        return rotate_in_one_pass(x_BTHC, cos.contiguous(), sin.contiguous(), sign, dtype).transpose(1, 2)
    exact = x_BHTC.float()
    first, second = exact.chunk(2, dim=-1)
    out_BHTC = torch.empty_like(exact)
    out_first, out_second = out_BHTC.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
    return out_BHTC.to(dtype)


def _has_loop(x_BHTC: Tensor, cos: Tensor, dtype: torch.dtype) -> bool:
    types = (torch.float32, torch.bfloat16)
    alike = x_BHTC.device.type == "cpu" and x_BHTC.dtype in types and dtype in types and cos.dtype == torch.float32
    return alike and kernels.available()
