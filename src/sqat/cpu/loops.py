"""Element-wise work of a training step: loops that pass over memory once where torch's operators do so several times.

Every loop replaces a few lines of torch, which remain its definition, and is compiled by numba on first use, for each
type of its elements (float32 or bfloat16); arithmetic is float32. Tensors are passed as addresses, so they must be
contiguous.

Shape letters: N tokens, D width, B rows, T positions, H heads, C head_dim, k experts per token, R rows (of
experts or of logits), M some of them, F hidden, I = 2F (linear and gate), V vocabulary.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sqat.cpu.arguments import element, elements, exp, float32s, int64s, narrow, number, random15, share, widen
from sqat.cpu.threads import FAST, Loop

# --- RMSNorm (arXiv 1910.07467, eq. 4)


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x / sqrt(mean(x²) + eps) · weight`, float32, and the factors 1 / sqrt(…), (N,), for the backward pass."""
    rows, width = x_ND.shape
    out_ND, scale_N = torch.empty_like(x_ND), x_ND.new_empty(rows)
    _norm(rows, x_ND, weight_D, float(eps), out_ND, scale_N, width, elements=x_ND.numel())
    return out_ND, scale_N


def rms_norm_backward(grad_ND: Tensor, x_ND: Tensor, weight_D: Tensor, scale_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `x_ND` and `weight_D`."""
    rows, width = x_ND.shape
    threads = torch.get_num_threads()
    d_x_ND, d_weight_TD = torch.empty_like(x_ND), x_ND.new_zeros(threads, width)
    places = (grad_ND, x_ND, weight_D, scale_N, d_x_ND, d_weight_TD)
    _norm_backward(rows, *places, width, threads, elements=x_ND.numel())
    return d_x_ND, d_weight_TD.sum(dim=0)


@Loop
def _norm(data):
    call, _, start, stop = share(data)
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


@Loop
def _norm_backward(data):
    call, thread, start, stop = share(data)
    rows, grad_at, x_at, weight_at, scales_at, d_x_at, d_weight_at, width, threads = call[:9]
    grad, x, d_x = float32s(grad_at, rows, width), float32s(x_at, rows, width), float32s(d_x_at, rows, width)
    weight, scales = float32s(weight_at, 1, width)[0], float32s(scales_at, 1, rows)[0]
    d_weight = float32s(d_weight_at, threads, width)[thread]
    for n in range(start, stop):
        scale, along = scales[n], np.float32(0)  # the component of the gradient along x
        for d in range(width):
            product = grad[n, d] * x[n, d] * scale
            d_weight[d] += product
            along += product * weight[d]
        along *= scale / np.float32(width)
        for d in range(width):
            d_x[n, d] = scale * (grad[n, d] * weight[d] - x[n, d] * along)


# --- rotary embedding


def rotate(x_BTHC: Tensor, cos: Tensor, sin: Tensor, sign: float, dtype: torch.dtype) -> Tensor:
    """Rotate every pair (x[j], x[j + C/2]) by its position's angle times `sign`, 1.0 or -1.0; (B, T, H, C) as `dtype`.
    Tables are for T positions or for all N tokens.
    """
    rows, positions, heads, head_dim = x_BTHC.shape
    out_BTHC = torch.empty(x_BTHC.shape, dtype=dtype)
    sizes = (cos.numel() // (head_dim // 2), heads, head_dim)
    loop = _rotate(element(x_BTHC), element(out_BTHC))
    loop(rows * positions, x_BTHC, cos, sin, out_BTHC, sign, *sizes, elements=x_BTHC.numel())
    return out_BTHC


@cache
def _rotate(of_x: type, of_out: type) -> Loop:
    def loop(data):
        call, _, start, stop = share(data)
        rows, x_at, cos_at, sin_at, out_at, sign_bits, period, heads, head_dim = call[:9]
        half, width, sign = head_dim // 2, heads * head_dim, number(sign_bits)
        cos, sin = float32s(cos_at, period, half), float32s(sin_at, period, half)
        x, out = elements(x_at, rows, width, of_x), elements(out_at, rows, width, of_out)
        for n in range(start, stop):
            at = n % period
            for first in range(0, width, head_dim):
                for j in range(half):
                    a, b = widen(x[n, first + j]), widen(x[n, first + half + j])
                    c, s = cos[at, j], sign * sin[at, j]
                    out[n, first + j] = narrow(a * c - b * s, out[n, first + j])
                    out[n, first + half + j] = narrow(b * c + a * s, out[n, first + j])

    return Loop(loop)


# --- rows computed for experts, summed as tokens


def weighted_sum(y_RD: Tensor, place_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
    """Σ_k weights[n, k] · y[place[n, k]], (N, D), float32; `y_RD` float32 or bfloat16, weights float32."""
    (tokens, k), (rows, width) = place_Nk.shape, y_RD.shape
    out_ND = torch.empty(tokens, width)
    places = (y_RD, place_Nk, weights_Nk, out_ND)
    _sum(element(y_RD))(tokens, *places, k, rows, width, elements=out_ND.numel())
    return out_ND


def weighted_sum_backward(grad_ND: Tensor, y_RD: Tensor, place_Nk: Tensor, weights_Nk: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `y_RD`, in its dtype and zero in unused rows, and of the weights; `grad_ND` is float32."""
    (tokens, k), (rows, width) = place_Nk.shape, y_RD.shape
    d_y_RD, d_weights_Nk = torch.zeros_like(y_RD), torch.empty_like(weights_Nk)
    places = (grad_ND, y_RD, place_Nk, weights_Nk, d_y_RD, d_weights_Nk)
    _sum_backward(element(y_RD))(tokens, *places, k, rows, width, elements=grad_ND.numel() * k)
    return d_y_RD, d_weights_Nk


@cache
def _sum(of_y: type) -> Loop:
    def loop(data):
        call, _, start, stop = share(data)
        tokens, y_at, place_at, weights_at, out_at, k, rows, width = call[:8]
        place, weights = int64s(place_at, tokens * k).reshape(tokens, k), float32s(weights_at, tokens, k)
        y, out = elements(y_at, rows, width, of_y), float32s(out_at, tokens, width)
        for n in range(start, stop):
            row, weight = place[n, 0], weights[n, 0]
            for d in range(width):
                out[n, d] = weight * widen(y[row, d])
            for i in range(1, k):
                row, weight = place[n, i], weights[n, i]
                for d in range(width):
                    out[n, d] += weight * widen(y[row, d])

    return Loop(loop)


@cache
def _sum_backward(of_y: type) -> Loop:
    def loop(data):
        call, _, start, stop = share(data)
        tokens, grad_at, y_at, place_at, weights_at, d_y_at, d_weights_at, k, rows, width = call[:10]
        place, weights = int64s(place_at, tokens * k).reshape(tokens, k), float32s(weights_at, tokens, k)
        grad, d_weights = float32s(grad_at, tokens, width), float32s(d_weights_at, tokens, k)
        y, d_y = elements(y_at, rows, width, of_y), elements(d_y_at, rows, width, of_y)
        for n in range(start, stop):
            for i in range(k):
                row, weight, along = place[n, i], weights[n, i], np.float32(0)
                for d in range(width):
                    along += grad[n, d] * widen(y[row, d])
                    d_y[row, d] = narrow(weight * grad[n, d], d_y[row, d])
                d_weights[n, i] = along

    return Loop(loop)


# --- gated SiLU with dropout


# Which elements dropout sets to zero; recomputed from a seed, so that no mask is stored.
Dropped = tuple[int, int, int]


def dropped_by(p: float, seed: int) -> Dropped:
    """Zeros with probability `p`, to within 2^-16."""
    return round(p * 2**15), seed % 2**32, (seed >> 31) % 2**32


def swiglu(hidden_MI: Tensor, bias_I: Tensor, first_row: int, dropped: Dropped) -> Tensor:
    """linear · silu(gate) of hidden + bias (float32), (M, F), with dropout applied; `first_row` is the first row's
    number in `dropped`.
    """
    rows, hidden = len(hidden_MI), hidden_MI.shape[1] // 2
    out_MF = hidden_MI.new_empty(rows, hidden)
    _swiglu(element(out_MF))(rows, hidden_MI, out_MF, bias_I, hidden, first_row, *dropped, elements=out_MF.numel())
    return out_MF


def swiglu_backward(grad_MF, hidden_MI, bias_I, first_row, dropped):
    """The gradient of `hidden_MI`, the result of :func:`swiglu` (which overwrites `grad_MF`), and that of the bias."""
    rows, hidden = grad_MF.shape
    d_hidden_MI, d_bias_TI = torch.empty_like(hidden_MI), torch.zeros(torch.get_num_threads(), 2 * hidden)
    places = (hidden_MI, grad_MF, d_hidden_MI, bias_I, d_bias_TI)
    where = (len(d_bias_TI), hidden, first_row, *dropped)
    _swiglu_backward(element(grad_MF))(rows, *places, *where, elements=grad_MF.numel())
    return d_hidden_MI, grad_MF, d_bias_TI.sum(dim=0)


@cache
def _swiglu(of_hidden: type) -> Loop:
    def loop(data):
        call, _, start, stop = share(data)
        rows, hidden_at, out_at, bias_at, width, first_row = call[:6]
        below, seed, salt = np.uint32(call[6]), np.uint32(call[7]), np.uint32(call[8])
        hidden, out = elements(hidden_at, rows, 2 * width, of_hidden), elements(out_at, rows, width, of_hidden)
        bias = float32s(bias_at, 1, 2 * width)[0]
        for m in range(start, stop):
            base = np.uint32((first_row + m) * width)
            for f in range(width):
                gate = widen(hidden[m, width + f]) + bias[width + f]
                value = (widen(hidden[m, f]) + bias[f]) * gate / (np.float32(1) + exp(-gate))
                keep = random15(base + np.uint32(f), seed, salt) >= below
                out[m, f] = narrow(value if keep else np.float32(0), out[m, f])

    return Loop(loop)


@cache
def _swiglu_backward(of_hidden: type) -> Loop:
    def loop(data):
        call, thread, start, stop = share(data)
        rows, hidden_at, grad_at, out_at, bias_at, d_bias_at, threads, width, first_row = call[:9]
        below, seed, salt = np.uint32(call[9]), np.uint32(call[10]), np.uint32(call[11])
        hidden, out = elements(hidden_at, rows, 2 * width, of_hidden), elements(out_at, rows, 2 * width, of_hidden)
        grad = elements(grad_at, rows, width, of_hidden)
        bias, d_bias = float32s(bias_at, 1, 2 * width)[0], float32s(d_bias_at, threads, 2 * width)[thread]
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

    return Loop(loop)


# --- softmax, cross-entropy and its gradient of a block of logits


def cross_entropy(logits_RV, bias_V, targets_R, d_bias_TV=None):
    """Each row's cross-entropy in nats (float32), and whether its most likely token (the first if several are) is the
    target; zero and false in rows whose target is negative.

    If `d_bias_TV` is given, a row for each thread of torch, the gradient of the bias is added to it, and that of the
    logits overwrites them.
    """
    rows, size = logits_RV.shape
    losses_R = torch.empty(rows)
    hits_R = torch.empty(rows, dtype=torch.bool)
    scratch_TV = torch.empty(torch.get_num_threads(), size)
    sums_TV = scratch_TV if d_bias_TV is None else d_bias_TV
    places = (logits_RV, bias_V, targets_R, sums_TV, losses_R, hits_R, scratch_TV)
    loop = _cross_entropy(element(logits_RV), d_bias_TV is not None)
    loop(rows, *places, size, len(scratch_TV), elements=logits_RV.numel())
    return losses_R, hits_R


@njit(fastmath=FAST | {"nnan"}, error_model="numpy", forceinline=True)
def _largest(x_V):
    """The largest value, found in four independent strands, so that comparisons need not wait."""
    a = b = c = d = x_V[0]
    quarter = len(x_V) // 4
    for v in range(quarter):
        a, b = max(a, x_V[v]), max(b, x_V[quarter + v])
        c, d = max(c, x_V[2 * quarter + v]), max(d, x_V[3 * quarter + v])
    for v in range(4 * quarter, len(x_V)):
        a = max(a, x_V[v])
    return max(max(a, b), max(c, d))


@cache
def _cross_entropy(of_logits: type, train: bool) -> Loop:
    def loop(data):
        call, thread, start, stop = share(data)
        rows, logits_at, bias_at, targets_at, d_bias_at, losses_at, hits_at, scratch_at, size, threads = call[:10]
        bias, targets = float32s(bias_at, 1, size)[0], int64s(targets_at, rows)
        d_bias, scratch = float32s(d_bias_at, threads, size)[thread], float32s(scratch_at, threads, size)[thread]
        losses, hits = float32s(losses_at, 1, rows)[0], elements(hits_at, 1, rows, np.uint8)[0]
        logits = elements(logits_at, rows, size, of_logits)
        for r in range(start, stop):
            target = targets[r]
            if target < 0:
                losses[r] = 0
                hits[r] = 0
                if train:
                    for v in range(size):
                        logits[r, v] = 0
                continue
            for v in range(size):
                scratch[v] = widen(logits[r, v]) + bias[v]
            largest, of_target = _largest(scratch), scratch[target]
            total = np.float32(0)
            for v in range(size):
                scratch[v] = exp(scratch[v] - largest)
                total += scratch[v]
            losses[r] = np.log(total) - (of_target - largest)
            earlier = 0
            for v in range(target):
                earlier += scratch[v] >= 1
            hits[r] = of_target >= largest and earlier == 0
            if train:
                scale = np.float32(1) / total
                scratch[target] -= total
                for v in range(size):
                    gradient = scratch[v] * scale
                    d_bias[v] += gradient
                    logits[r, v] = narrow(gradient, logits[r, v])

    return Loop(loop)
