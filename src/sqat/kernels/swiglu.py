"""The gated SiLU of a feed-forward with dropout, one pass forward and one backward.

Shape letters: M rows, F hidden, linear and gate side by side in (M, 2F).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sqat.kernels.arguments import arguments, bfloat16s, exp, float32s, inline, narrow, random15, share, widen
from sqat.kernels.threads import Loop, compiled_loop


class Dropped:
    """Which elements dropout sets to zero: the same whenever asked, so that no mask is kept.

    Args:
        p: their share, to within 2^-16; 0 for none.
        seed: tells one such choice from another.
    """

    def __init__(self, p: float, seed: int) -> None:
        self.key = (round(p * 2**15), seed % 2**32, (seed >> 31) % 2**32)


def swiglu(hidden_MI: Tensor, first_row: int, dropped: Dropped, out_MF: Tensor) -> Tensor:
    """linear · silu(gate), with zeros where dropped; rows count from `first_row` in `dropped`."""
    rows, hidden = out_MF.shape
    _forward()(rows, hidden_MI, out_MF, hidden, first_row, _kind(out_MF), *dropped.key, elements=out_MF.numel())
    return out_MF


def swiglu_backward(grad_MF: Tensor, hidden_MI: Tensor, first_row: int, dropped: Dropped, out_MI: Tensor) -> Tensor:
    """The gradient of `hidden_MI`; `grad_MF` is overwritten with what :func:`swiglu` gave."""
    rows, hidden = grad_MF.shape
    where = (hidden, first_row, _kind(grad_MF), *dropped.key)
    _backward()(rows, hidden_MI, grad_MF, *where, out_MI, elements=grad_MF.numel())
    return out_MI


def _kind(x: Tensor) -> int:
    return 1 if x.dtype == torch.bfloat16 else 0


@inline
def _forward_rows(start, stop, hidden, out, first_row, below, seed, salt):
    width = out.shape[1]
    for m in range(start, stop):
        base = np.uint32((first_row + m) * width)
        for f in range(width):
            gate = widen(hidden[m, width + f])
            value = widen(hidden[m, f]) * gate / (np.float32(1) + exp(-gate))
            keep = random15(base + np.uint32(f), seed, salt) >= below
            out[m, f] = narrow(value if keep else np.float32(0), out[m, f])


@inline
def _backward_rows(start, stop, hidden, grad, out, first_row, below, seed, salt):
    width = grad.shape[1]
    for m in range(start, stop):
        base = np.uint32((first_row + m) * width)
        for f in range(width):
            keep = random15(base + np.uint32(f), seed, salt) >= below
            linear, gate = widen(hidden[m, f]), widen(hidden[m, width + f])
            above = widen(grad[m, f]) if keep else np.float32(0)
            sigmoid = np.float32(1) / (np.float32(1) + exp(-gate))
            nonlinear = gate * sigmoid
            out[m, f] = narrow(above * nonlinear, out[m, f])
            slope = sigmoid + nonlinear * (np.float32(1) - sigmoid)
            out[m, width + f] = narrow(above * linear * slope, out[m, f])
            grad[m, f] = narrow(linear * nonlinear if keep else np.float32(0), grad[m, f])


@cache
def _forward() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        rows, hidden_at, out_at, width, first, narrow_type = call[:6]
        below, seed, salt = np.uint32(call[6]), np.uint32(call[7]), np.uint32(call[8])
        if narrow_type:
            hidden, out = bfloat16s(hidden_at, rows, 2 * width), bfloat16s(out_at, rows, width)
            _forward_rows(start, stop, hidden, out, first, below, seed, salt)
        else:
            wide_hidden, wide_out = float32s(hidden_at, rows, 2 * width), float32s(out_at, rows, width)
            _forward_rows(start, stop, wide_hidden, wide_out, first, below, seed, salt)

    return compiled_loop(loop)


@cache
def _backward() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        rows, hidden_at, grad_at, width, first, narrow_type, _, _, _, out_at = call[:10]
        below, seed, salt = np.uint32(call[6]), np.uint32(call[7]), np.uint32(call[8])
        if narrow_type:
            hidden, grad = bfloat16s(hidden_at, rows, 2 * width), bfloat16s(grad_at, rows, width)
            out = bfloat16s(out_at, rows, 2 * width)
            _backward_rows(start, stop, hidden, grad, out, first, below, seed, salt)
        else:
            wide_hidden, wide_grad = float32s(hidden_at, rows, 2 * width), float32s(grad_at, rows, width)
            wide_out = float32s(out_at, rows, 2 * width)
            _backward_rows(start, stop, wide_hidden, wide_grad, wide_out, first, below, seed, salt)

    return compiled_loop(loop)
