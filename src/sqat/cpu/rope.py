"""Rotary embedding in one pass, the change of type included.

Shape letters: B rows, T positions, N = B·T, H heads, C head_dim.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sqat.cpu.arguments import arguments, bfloat16s, float32s, inline, narrow, number, share, widen
from sqat.cpu.threads import Loop, compiled_loop


def rotate(x_BTHC: Tensor, cos: Tensor, sin: Tensor, sign: float, dtype: torch.dtype) -> Tensor:
    """Every pair (x[j], x[j + C/2]) turned by its position's angle times `sign`, 1.0 or -1.0; (B, T, H, C) as `dtype`.

    Args:
        x_BTHC: contiguous, float32 or bfloat16; so is the result, of either type.
        cos, sin: float32, for T positions or for all N.
    """
    rows, positions, heads, head_dim = x_BTHC.shape
    out_BTHC = torch.empty(x_BTHC.shape, dtype=dtype)
    kind = (x_BTHC.dtype == torch.bfloat16) + 2 * (dtype == torch.bfloat16)
    period = cos.numel() // (head_dim // 2)
    places = (x_BTHC, cos, sin, out_BTHC)
    _loop()(rows * positions, *places, sign, period, heads, head_dim, kind, elements=x_BTHC.numel())
    return out_BTHC


@inline
def _rows(start, stop, x, cos, sin, sign, out, half):
    heads = x.shape[1] // (2 * half)
    for n in range(start, stop):
        at = n % len(cos)
        for h in range(heads):
            first = 2 * h * half
            for j in range(half):
                a, b = widen(x[n, first + j]), widen(x[n, first + half + j])
                c, s = cos[at, j], sign * sin[at, j]
                out[n, first + j] = narrow(a * c - b * s, out[n, first + j])
                out[n, first + half + j] = narrow(b * c + a * s, out[n, first + j])


@cache
def _loop() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        rows, x_at, cos_at, sin_at, out_at, sign_bits, period, heads, head_dim, kind = call[:10]
        half, width = head_dim // 2, heads * head_dim
        cos, sin, sign = float32s(cos_at, period, half), float32s(sin_at, period, half), number(sign_bits)
        x, out = float32s(x_at, rows, width), float32s(out_at, rows, width)
        narrow_x, narrow_out = bfloat16s(x_at, rows, width), bfloat16s(out_at, rows, width)
        if kind == 0:
            _rows(start, stop, x, cos, sin, sign, out, half)
        elif kind == 1:
            _rows(start, stop, narrow_x, cos, sin, sign, out, half)
        elif kind == 2:
            _rows(start, stop, x, cos, sin, sign, narrow_out, half)
        else:
            _rows(start, stop, narrow_x, cos, sin, sign, narrow_out, half)

    return compiled_loop(loop)
