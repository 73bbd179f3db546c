"""RMSNorm (arXiv 1910.07467, eq. 4) and its gradients, each in one visit of a row.

Shape letters: N rows, D width.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sqat.cpu.arguments import arguments, float32s, number, share
from sqat.cpu.threads import Loop, compiled_loop


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x / sqrt(mean(x²) + eps) · weight`, float32, and the factors 1 / sqrt(…), (N,), for the backward pass."""
    rows, width = x_ND.shape
    out_ND, scale_N = torch.empty_like(x_ND), x_ND.new_empty(rows)
    _forward()(rows, x_ND, weight_D, float(eps), out_ND, scale_N, width, elements=x_ND.numel())
    return out_ND, scale_N


def rms_norm_backward(grad_ND: Tensor, x_ND: Tensor, weight_D: Tensor, scale_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `x_ND` and `weight_D`."""
    rows, width = x_ND.shape
    threads = torch.get_num_threads()
    d_x_ND, d_weight_TD = torch.empty_like(x_ND), x_ND.new_zeros(threads, width)
    places = (grad_ND, x_ND, weight_D, scale_N, d_x_ND, d_weight_TD)
    _backward()(rows, *places, width, threads, elements=x_ND.numel())
    return d_x_ND, d_weight_TD.sum(dim=0)


@cache
def _forward() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        rows, x_at, weight_at, eps_bits, out_at, scales_at, width = call[:7]
        x, weight, out = float32s(x_at, rows, width), float32s(weight_at, 1, width)[0], float32s(out_at, rows, width)
        eps, scales = number(eps_bits), float32s(scales_at, 1, rows)[0]
        for n in range(start, stop):
            squares = np.float32(0)
            for d in range(width):
                squares += x[n, d] * x[n, d]
            scale = np.float32(1) / np.sqrt(squares / np.float32(width) + eps)
            scales[n] = scale
            for d in range(width):
                out[n, d] = x[n, d] * scale * weight[d]

    return compiled_loop(loop)


@cache
def _backward() -> Loop:
    def loop(data):
        call = arguments(data)
        thread, start, stop = share(call)
        rows, grad_at, x_at, weight_at, scales_at, d_x_at, d_weight_at, width, threads = call[:9]
        grad, x, d_x = float32s(grad_at, rows, width), float32s(x_at, rows, width), float32s(d_x_at, rows, width)
        weight, scales = float32s(weight_at, 1, width)[0], float32s(scales_at, 1, rows)[0]
        d_weight = float32s(d_weight_at, threads, width)[thread]
        for n in range(start, stop):
            scale, along = scales[n], np.float32(0)  # how far the gradient points along x
            for d in range(width):
                product = grad[n, d] * x[n, d] * scale
                d_weight[d] += product
                along += product * weight[d]
            along *= scale / np.float32(width)
            for d in range(width):
                d_x[n, d] = scale * (grad[n, d] * weight[d] - x[n, d] * along)

    return compiled_loop(loop)
