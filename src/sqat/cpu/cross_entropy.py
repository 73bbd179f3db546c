"""Softmax, cross-entropy and its gradient for a block of logits, in one pass over each row.

Shape letters: R rows, V vocabulary.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sqat.cpu.arguments import arguments, bfloat16s, bools, exp, float32s, inline, int64s, narrow, share, widen
from sqat.cpu.threads import FAST, Loop, compiled_loop


def cross_entropy(
    logits_RV: Tensor, bias_V: Tensor, targets_R: Tensor, d_bias_TV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each row's cross-entropy in nats (float32), and whether its most likely token (the first if several are) is the
    target; zero and false in rows whose target is negative.

    Args:
        logits_RV: without bias, bfloat16 or float32; overwritten with their gradients if `d_bias_TV` is given.
        bias_V: float32.
        d_bias_TV: one row per thread of torch, float32; the bias's gradient is added to it.
    """
    rows, size = logits_RV.shape
    losses_R = torch.empty(rows)
    hits_R = torch.empty(rows, dtype=torch.bool)
    scratch_TV = torch.empty(torch.get_num_threads(), size)
    kind = (logits_RV.dtype == torch.bfloat16) + 2 * (d_bias_TV is not None)
    sums_TV = scratch_TV if d_bias_TV is None else d_bias_TV
    places = (logits_RV, bias_V, targets_R, sums_TV, losses_R, hits_R, scratch_TV)
    _loop()(rows, *places, size, kind, len(scratch_TV), elements=logits_RV.numel())
    return losses_R, hits_R


@njit(fastmath=FAST | {"nnan"}, error_model="numpy", forceinline=True)
def _largest(x_V):
    """The index of the largest value, found in four independent strands, so that comparisons need not wait."""
    a = b = c = d = x_V[0]
    quarter = len(x_V) // 4
    for v in range(quarter):
        a, b = max(a, x_V[v]), max(b, x_V[quarter + v])
        c, d = max(c, x_V[2 * quarter + v]), max(d, x_V[3 * quarter + v])
    for v in range(4 * quarter, len(x_V)):
        a = max(a, x_V[v])
    return max(max(a, b), max(c, d))


@inline
def _rows(start, stop, logits, bias, targets, losses, hits, scratch, d_bias, train):
    size = logits.shape[1]
    for r in range(start, stop):
        target = targets[r]
        if target < 0:
            losses[0, r] = 0
            hits[r] = 0
            if train:
                for v in range(size):
                    logits[r, v] = 0
            continue
        for v in range(size):
            scratch[v] = widen(logits[r, v]) + bias[0, v]
        largest, of_target = _largest(scratch), scratch[target]
        total = np.float32(0)
        for v in range(size):
            scratch[v] = exp(scratch[v] - largest)
            total += scratch[v]
        losses[0, r] = np.log(total) - (of_target - largest)
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


@cache
def _loop() -> Loop:
    def loop(data):
        call = arguments(data)
        thread, start, stop = share(call)
        rows, logits_at, bias_at, targets_at, d_bias_at, losses_at, hits_at, scratch_at, size, kind, threads = call[:11]
        bias, targets = float32s(bias_at, 1, size), int64s(targets_at, rows)
        d_bias, scratch = float32s(d_bias_at, threads, size)[thread], float32s(scratch_at, threads, size)[thread]
        losses, hits = float32s(losses_at, 1, rows), bools(hits_at, rows)
        train = kind >= 2
        if kind & 1:
            logits = bfloat16s(logits_at, rows, size)
            _rows(start, stop, logits, bias, targets, losses, hits, scratch, d_bias, train)
        else:
            wide = float32s(logits_at, rows, size)
            _rows(start, stop, wide, bias, targets, losses, hits, scratch, d_bias, train)

    return compiled_loop(loop)
