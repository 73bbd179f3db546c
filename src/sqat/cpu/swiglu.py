"""The gated SiLU of a feed-forward with dropout, one pass forward and one backward.

Shape letters: M rows, F hidden, linear and gate side by side in (M, 2F).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sqat.cpu.arguments import arguments, bfloat16s, exp, float32s, inline, narrow, random15, share, widen
from sqat.cpu.threads import Loop, compiled_loop


class Dropped:
    """Which elements dropout sets to zero: the same whenever asked, so that no mask is kept.

    Args:
        p: their share, to within 2^-16; 0 for none.
        seed: tells one such choice from another.
    """

    def __init__(self, p: float, seed: int) -> None:
        self.key = (round(p * 2**15), seed % 2**32, (seed >> 31) % 2**32)


def swiglu(hidden_MI: Tensor, bias_I: Tensor | None, first_row: int, dropped: Dropped, out_MF: Tensor) -> Tensor:
    """linear · silu(gate) of hidden + bias (float32), with zeros where dropped; rows count from `first_row` in
    `dropped`.
    """
    rows, hidden = out_MF.shape
    bias_I = hidden_MI.new_zeros(2 * hidden, dtype=torch.float32) if bias_I is None else bias_I
    where = (hidden, first_row, _kind(out_MF), *dropped.key)
    _forward()(rows, hidden_MI, out_MF, *where, bias_I, elements=out_MF.numel())
    return out_MF


def swiglu_backward(
    grad_MF: Tensor, hidden_MI: Tensor, bias_I: Tensor | None, first_row: int, dropped: Dropped, out_MI: Tensor
) -> Tensor:
    """Writes the gradient of `hidden_MI` to `out_MI` and returns the bias's, (I,), float32; `grad_MF` is overwritten
    with what :func:`swiglu` gave.
    """
    rows, hidden = grad_MF.shape
    bias_I = hidden_MI.new_zeros(2 * hidden, dtype=torch.float32) if bias_I is None else bias_I
    d_bias_TI = torch.zeros(torch.get_num_threads(), 2 * hidden)
    where = (hidden, first_row, _kind(grad_MF), *dropped.key)
    _backward()(rows, hidden_MI, grad_MF, *where, out_MI, bias_I, d_bias_TI, len(d_bias_TI), elements=grad_MF.numel())
    return d_bias_TI.sum(dim=0)


def _kind(x: Tensor) -> int:
    return 1 if x.dtype == torch.bfloat16 else 0


@inline
def _forward_rows(start, stop, hidden, bias, out, first_row, below, seed, salt):
    width = out.shape[1]
    for m in range(start, stop):
        base = np.uint32((first_row + m) * width)
        for f in range(width):
            gate = widen(hidden[m, width + f]) + bias[width + f]
            value = (widen(hidden[m, f]) + bias[f]) * gate / (np.float32(1) + exp(-gate))
            keep = random15(base + np.uint32(f), seed, salt) >= below
            out[m, f] = narrow(value if keep else np.float32(0), out[m, f])


@inline
def _backward_rows(start, stop, hidden, bias, grad, out, d_bias, first_row, below, seed, salt):
    width = grad.shape[1]
    for m in range(start, stop):
        base = np.uint32((first_row + m) * width)
        for f in range(width):
            keep = random15(base + np.uint32(f), seed, salt) >= below
            linear, gate = widen(hidden[m, f]) + bias[f], widen(hidden[m, width + f]) + bias[width + f]
            above = widen(grad[m, f]) if keep else np.float32(0)
            sigmoid = np.float32(1) / (np.float32(1) + exp(-gate))
            nonlinear = gate * sigmoid
            d_linear = above * nonlinear
            d_gate = above * linear * (sigmoid + nonlinear * (np.float32(1) - sigmoid))
            out[m, f], out[m, width + f] = narrow(d_linear, out[m, f]), narrow(d_gate, out[m, f])
            d_bias[f] += d_linear
            d_bias[width + f] += d_gate
            grad[m, f] = narrow(linear * nonlinear if keep else np.float32(0), grad[m, f])


@cache
def _forward() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        rows, hidden_at, out_at, width, first, narrow_type = call[:6]
        below, seed, salt = np.uint32(call[6]), np.uint32(call[7]), np.uint32(call[8])
        bias = float32s(call[9], 1, 2 * width)[0]
        if narrow_type:
            hidden, out = bfloat16s(hidden_at, rows, 2 * width), bfloat16s(out_at, rows, width)
            _forward_rows(start, stop, hidden, bias, out, first, below, seed, salt)
        else:
            wide_hidden, wide_out = float32s(hidden_at, rows, 2 * width), float32s(out_at, rows, width)
            _forward_rows(start, stop, wide_hidden, bias, wide_out, first, below, seed, salt)

    return compiled_loop(loop)


@cache
def _backward() -> Loop:
    def loop(data):
        call = arguments(data)
        thread, start, stop = share(call)
        rows, hidden_at, grad_at, width, first, narrow_type, _, _, _, out_at, bias_at, d_bias_at, threads = call[:13]
        below, seed, salt = np.uint32(call[6]), np.uint32(call[7]), np.uint32(call[8])
        bias, d_bias = float32s(bias_at, 1, 2 * width)[0], float32s(d_bias_at, threads, 2 * width)[thread]
        if narrow_type:
            hidden, grad = bfloat16s(hidden_at, rows, 2 * width), bfloat16s(grad_at, rows, width)
            out = bfloat16s(out_at, rows, 2 * width)
            _backward_rows(start, stop, hidden, bias, grad, out, d_bias, first, below, seed, salt)
        else:
            wide_hidden, wide_grad = float32s(hidden_at, rows, 2 * width), float32s(grad_at, rows, width)
            wide_out = float32s(out_at, rows, 2 * width)
            _backward_rows(start, stop, wide_hidden, bias, wide_grad, wide_out, d_bias, first, below, seed, salt)

    return compiled_loop(loop)
