"""Rows computed for the experts, put back together as tokens, and the way back for gradients.

Shape letters: N tokens, k experts per token, R rows, D width.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sqat.cpu.arguments import arguments, bfloat16s, float32s, inline, int64s, narrow, share, widen
from sqat.cpu.threads import Loop, compiled_loop


def weighted_sum(y_RD: Tensor, place_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
    """Σ_k weights[n, k] · y[place[n, k]], (N, D), float32; `y_RD` float32 or bfloat16, weights float32."""
    (tokens, k), (rows, width) = place_Nk.shape, y_RD.shape
    out_ND = torch.empty(tokens, width)
    sizes = (k, rows, width, int(y_RD.dtype == torch.bfloat16))
    _sum()(tokens, y_RD, place_Nk, weights_Nk, out_ND, *sizes, elements=out_ND.numel())
    return out_ND


def weighted_sum_backward(grad_ND: Tensor, y_RD: Tensor, place_Nk: Tensor, weights_Nk: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `y_RD`, in its type, zero in rows that no token has, and of the weights; `grad_ND` is float32."""
    (tokens, k), (rows, width) = place_Nk.shape, y_RD.shape
    d_y_RD, d_weights_Nk = torch.zeros_like(y_RD), torch.empty_like(weights_Nk)
    sizes = (k, rows, width, int(y_RD.dtype == torch.bfloat16))
    places = (grad_ND, y_RD, place_Nk, weights_Nk, d_y_RD, d_weights_Nk)
    _sum_backward()(tokens, *places, *sizes, elements=grad_ND.numel() * k)
    return d_y_RD, d_weights_Nk


@inline
def _sum_rows(start, stop, y, place, weights, out):
    for n in range(start, stop):
        row, weight = place[n, 0], weights[n, 0]
        for d in range(out.shape[1]):
            out[n, d] = weight * widen(y[row, d])
        for i in range(1, place.shape[1]):
            row, weight = place[n, i], weights[n, i]
            for d in range(out.shape[1]):
                out[n, d] += weight * widen(y[row, d])


@inline
def _gradient_rows(start, stop, grad, y, place, weights, d_y, d_weights):
    for n in range(start, stop):
        for i in range(place.shape[1]):
            row, weight, along = place[n, i], weights[n, i], np.float32(0)
            for d in range(grad.shape[1]):
                along += grad[n, d] * widen(y[row, d])
                d_y[row, d] = narrow(weight * grad[n, d], d_y[row, d])
            d_weights[n, i] = along


@cache
def _sum() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        tokens, y_at, place_at, weights_at, out_at, k, rows, width, is_narrow = call[:9]
        place = int64s(place_at, tokens * k).reshape(tokens, k)
        weights, out = float32s(weights_at, tokens, k), float32s(out_at, tokens, width)
        if is_narrow:
            _sum_rows(start, stop, bfloat16s(y_at, rows, width), place, weights, out)
        else:
            _sum_rows(start, stop, float32s(y_at, rows, width), place, weights, out)

    return compiled_loop(loop)


@cache
def _sum_backward() -> Loop:
    def loop(data):
        call = arguments(data)
        _, start, stop = share(call)
        tokens, grad_at, y_at, place_at, weights_at, d_y_at, d_weights_at, k, rows, width, is_narrow = call[:11]
        place = int64s(place_at, tokens * k).reshape(tokens, k)
        grad, weights, d_weights = (
            float32s(grad_at, tokens, width),
            float32s(weights_at, tokens, k),
            float32s(d_weights_at, tokens, k),
        )
        if is_narrow:
            y, d_y = bfloat16s(y_at, rows, width), bfloat16s(d_y_at, rows, width)
            _gradient_rows(start, stop, grad, y, place, weights, d_y, d_weights)
        else:
            wide_y, wide_d_y = float32s(y_at, rows, width), float32s(d_y_at, rows, width)
            _gradient_rows(start, stop, grad, wide_y, place, weights, wide_d_y, d_weights)

    return compiled_loop(loop)
