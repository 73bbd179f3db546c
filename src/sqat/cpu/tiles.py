"""Building blocks of tiled attention: tiles of eight rows by sixteen columns, summed in registers.

Shape letters: Q eight queries, T tokens, C head_dim, P C padded to whole vectors, N rows of a tensor in memory.
"""

from __future__ import annotations

import numpy as np

from sqat.cpu import vector as v
from sqat.cpu.arguments import inline
from sqat.cpu.vector import LANES

Q = 8


@inline
def exp_below_zero(x):
    """e^x for x up to 0, as :func:`sqat.cpu.arguments.exp`, but zero below -87."""
    one, low = v.splat(np.float32(1)), v.splat(np.float32(-87))
    y = v.largest(low, x)  # NaN stays NaN
    n = v.floor(v.fma(y, v.splat(np.float32(1.4426950408889634)), v.splat(np.float32(0.5))))
    r = v.fma(n, v.splat(np.float32(-0.693359375)), y)
    r = v.fma(n, v.splat(np.float32(2.12194440e-4)), r)
    p = v.splat(np.float32(1.9875691500e-4))
    p = v.fma(p, r, v.splat(np.float32(1.3981999507e-3)))
    p = v.fma(p, r, v.splat(np.float32(8.3334519073e-3)))
    p = v.fma(p, r, v.splat(np.float32(4.1665795894e-2)))
    p = v.fma(p, r, v.splat(np.float32(1.6666665459e-1)))
    p = v.fma(p, r, v.splat(np.float32(5.0000001201e-1)))
    p = v.fma(v.mul(p, r), r, v.add(r, one))
    return v.where_less(x, low, v.splat(np.float32(0)), v.mul(p, v.power_of_two(n)))


@inline
def store_rows(out_QT, column, vectors):
    """Sixteen columns of eight rows."""
    for i in range(Q):
        v.store(out_QT, i, column, vectors[i])


@inline
def products(left_QT, start, stop, right, at, column):
    """Columns `start` to `stop` of eight rows times as many rows of `right`, `at` further on; sixteen columns."""
    a = b = c = d = e = f = g = h = v.splat(np.float32(0))
    for t in range(start, stop):
        x = v.load(right, at + t, column)
        a, b = v.fma(v.splat(left_QT[0, t]), x, a), v.fma(v.splat(left_QT[1, t]), x, b)
        c, d = v.fma(v.splat(left_QT[2, t]), x, c), v.fma(v.splat(left_QT[3, t]), x, d)
        e, f = v.fma(v.splat(left_QT[4, t]), x, e), v.fma(v.splat(left_QT[5, t]), x, f)
        g, h = v.fma(v.splat(left_QT[6, t]), x, g), v.fma(v.splat(left_QT[7, t]), x, h)
    return a, b, c, d, e, f, g, h


@inline
def mix(weights_QT, start, stop, rows_TP, column, out_QP):
    """Sixteen columns of weights · rows, over rows `start` to `stop`."""
    store_rows(out_QP, column, products(weights_QT, start, stop, rows_TP, 0, column))


@inline
def spread(weights_QT, start, stop, rows_QP, column, total_TP):
    """Sixteen columns of weightsᵀ · rows, added to rows `start` to `stop` of the total."""
    a, b = v.load(rows_QP, 0, column), v.load(rows_QP, 1, column)
    c, d = v.load(rows_QP, 2, column), v.load(rows_QP, 3, column)
    e, f = v.load(rows_QP, 4, column), v.load(rows_QP, 5, column)
    g, h = v.load(rows_QP, 6, column), v.load(rows_QP, 7, column)
    for t in range(start, stop):
        x = v.load(total_TP, t, column)
        x = v.fma(v.splat(weights_QT[0, t]), a, x)
        y = v.mul(v.splat(weights_QT[1, t]), b)
        x = v.fma(v.splat(weights_QT[2, t]), c, x)
        y = v.fma(v.splat(weights_QT[3, t]), d, y)
        x = v.fma(v.splat(weights_QT[4, t]), e, x)
        y = v.fma(v.splat(weights_QT[5, t]), f, y)
        x = v.fma(v.splat(weights_QT[6, t]), g, x)
        y = v.fma(v.splat(weights_QT[7, t]), h, y)
        v.store(total_TP, t, column, v.add(x, y))


@inline
def _copy(x_NC, row, scale, out_NP, to):
    """Copy a row, times `scale`, up to the smaller width."""
    width = min(x_NC.shape[1], out_NP.shape[1])
    whole = width // LANES * LANES
    for c in range(0, whole, LANES):
        v.store(out_NP, to, c, v.mul(v.load(x_NC, row, c), v.splat(scale)))
    for c in range(whole, width):
        out_NP[to, c] = x_NC[row, c] * scale


@inline
def take_rows(x_NC, first_row, step, head, count, scale, out_QP):
    """Copy a head's vectors of `count` tokens, times `scale`, and pad with zeros."""
    for t in range(count):
        _copy(x_NC, (first_row + t) * step + head, scale, out_QP, t)
        for c in range(x_NC.shape[1], out_QP.shape[1]):
            out_QP[t, c] = np.float32(0)
    for t in range(count, len(out_QP)):
        for c in range(0, out_QP.shape[1], LANES):
            v.store(out_QP, t, c, v.splat(np.float32(0)))


@inline
def give_rows(x_QP, first_row, step, head, count, scale, out_NC):
    for t in range(count):
        _copy(x_QP, t, scale, out_NC, (first_row + t) * step + head)


@inline
def dot(x_QP, y_QP, row):
    total = v.splat(np.float32(0))
    for c in range(0, x_QP.shape[1], LANES):
        total = v.fma(v.load(x_QP, row, c), v.load(y_QP, row, c), total)
    return v.sum_across(total)


@inline
def make_tiles(rows_TP, width, out):
    """Transpose sixteen rows at a time: row t, column c goes to row (t // 16)·width + c, column t % 16."""
    for t in range(len(rows_TP)):
        tile, lane = t // LANES, t % LANES
        for c in range(width):
            out[tile * width + c, lane] = rows_TP[t, c]
