"""Attention of whole sequences of a few hundred tokens, each query over exactly the keys that it sees.

Tiles are eight queries by sixteen keys: scores are summed in registers, and the scores of eight queries over all keys
stay in the first-level cache. torch's kernel uses a general matrix library, which reaches a quarter of a core's peak
for heads as narrow as 16.

Shape letters: B rows, T tokens, H query heads, K key/value heads, C head_dim (P padded to whole vectors), Q queries of
a block.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sqat.cpu import vector as v
from sqat.cpu.arguments import float32s, inline, int64s, share
from sqat.cpu.threads import Loop
from sqat.cpu.tiles import Q, dot, exp_below_zero, give_rows, make_tiles, mix, products, spread, store_rows, take_rows
from sqat.cpu.vector import LANES

HIDDEN = np.float32(-1e30)


def attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, first_BT: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q·kᵀ / sqrt(C)) · v, and the log-sum-exp of the scores, (B, H, T), for the backward pass.

    `first_BT`, (1 or B, T), is the first key that each query sees, non-decreasing in T; the last is its own.
    """
    rows, tokens, heads, head_dim = q_BTHC.shape
    kv_heads = k_BTKC.shape[2]
    out_BTHC, sums_BHT = torch.empty_like(q_BTHC), q_BTHC.new_empty(rows, heads, tokens)
    sizes = (rows, tokens, heads, kv_heads, head_dim, len(first_BT))
    _forward(rows * kv_heads, q_BTHC, k_BTKC, v_BTKC, first_BT, out_BTHC, sums_BHT, *sizes, elements=q_BTHC.numel())
    return out_BTHC, sums_BHT


def attention_backward(grad_BTHC, q_BTHC, k_BTKC, v_BTKC, first_BT, out_BTHC, sums_BHT):
    """The gradients of queries, keys and values."""
    rows, tokens, heads, head_dim = q_BTHC.shape
    kv_heads = k_BTKC.shape[2]
    d_q, d_k, d_v = (torch.empty_like(x) for x in (q_BTHC, k_BTKC, v_BTKC))
    places = (q_BTHC, k_BTKC, v_BTKC, first_BT, out_BTHC, sums_BHT, grad_BTHC, d_q, d_k, d_v)
    sizes = (rows, tokens, heads, kv_heads, head_dim, len(first_BT))
    _backward(rows * kv_heads, *places, *sizes, elements=q_BTHC.numel())
    return d_q, d_k, d_v


@inline
def _seen(x, tile, query, tokens, first, edge):
    """The scores of a tile's keys, with keys that a query does not see masked out."""
    if not edge:
        return x
    query = min(query, tokens - 1)  # queries beyond the end repeat the last one; their results are not used
    return v.between(tile, first[query], query + 1, x, v.splat(HIDDEN))


@inline
def _forward_block(queries_QP, key_tiles, values_TP, first, q0, tokens, width, scores_QT, sums_Q, out_QP):
    """Forward pass for the Q queries from `q0` on."""
    stop = min(q0 + Q, tokens)
    start, end = first[q0] // LANES * LANES, (stop + LANES - 1) // LANES * LANES
    inside = first[stop - 1]  # from here to q0, all of them see every key
    ma = mb = mc = md = me = mf = mg = mh = v.splat(HIDDEN)
    for tile in range(start, end, LANES):
        a, b, c, d, e, f, g, h = products(queries_QP, 0, width, key_tiles, tile // LANES * width, 0)
        edge = tile < inside or tile + LANES > q0 + 1
        a, b = _seen(a, tile, q0, tokens, first, edge), _seen(b, tile, q0 + 1, tokens, first, edge)
        c, d = _seen(c, tile, q0 + 2, tokens, first, edge), _seen(d, tile, q0 + 3, tokens, first, edge)
        e, f = _seen(e, tile, q0 + 4, tokens, first, edge), _seen(f, tile, q0 + 5, tokens, first, edge)
        g, h = _seen(g, tile, q0 + 6, tokens, first, edge), _seen(h, tile, q0 + 7, tokens, first, edge)
        ma, mb, mc, md = v.largest(ma, a), v.largest(mb, b), v.largest(mc, c), v.largest(md, d)
        me, mf, mg, mh = v.largest(me, e), v.largest(mf, f), v.largest(mg, g), v.largest(mh, h)
        store_rows(scores_QT, tile, (a, b, c, d, e, f, g, h))
    peaks = (ma, mb, mc, md, me, mf, mg, mh)
    for i in range(Q):
        peak, totals = v.largest_across(peaks[i]), v.splat(np.float32(0))
        for t in range(start, end, LANES):
            x = exp_below_zero(v.sub(v.load(scores_QT, i, t), v.splat(peak)))
            v.store(scores_QT, i, t, x)
            totals = v.add(totals, x)
        total = v.sum_across(totals)
        sums_Q[i], shrink = peak + np.log(total), np.float32(1) / total
        for t in range(start, end, LANES):
            v.store(scores_QT, i, t, v.mul(v.load(scores_QT, i, t), v.splat(shrink)))
    for column in range(0, out_QP.shape[1], LANES):
        mix(scores_QT, start, stop, values_TP, column, out_QP)


@inline
def _backward_block(
    queries_QP, grads_QP, key_tiles, value_tiles, first, q0, tokens, width, sums_Q, along_Q, probs_QT, d_scores_QT
):
    """Backward pass for the Q queries from `q0` on; returns the range of keys that they see, in whole tiles."""
    stop = min(q0 + Q, tokens)
    start, end = first[q0] // LANES * LANES, (stop + LANES - 1) // LANES * LANES
    inside = first[stop - 1]
    for tile in range(start, end, LANES):
        at = tile // LANES * width
        edge = tile < inside or tile + LANES > q0 + 1
        scores = products(queries_QP, 0, width, key_tiles, at, 0)
        above = products(grads_QP, 0, width, value_tiles, at, 0)
        for i in range(Q):
            seen = _seen(scores[i], tile, q0 + i, tokens, first, edge)
            probs = exp_below_zero(v.sub(seen, v.splat(sums_Q[i])))
            v.store(probs_QT, i, tile, probs)
            v.store(d_scores_QT, i, tile, v.mul(probs, v.sub(above[i], v.splat(along_Q[i]))))
    return start, end


@Loop
def _forward(data):
    """All queries of some key/value heads, each in one row of the batch."""
    call, _, start, stop = share(data)
    q_at, k_at, v_at, first_at, out_at, sums_at, rows, tokens, heads, kv_heads, width, periods = call[1:13]
    queries, out = float32s(q_at, rows * tokens * heads, width), float32s(out_at, rows * tokens * heads, width)
    keys, values = float32s(k_at, rows * tokens * kv_heads, width), float32s(v_at, rows * tokens * kv_heads, width)
    firsts = int64s(first_at, periods * tokens).reshape(periods, tokens)
    sums = float32s(sums_at, rows * heads, tokens)
    for unit in range(start, stop):
        row, kv = unit // kv_heads, unit % kv_heads
        padded, whole = (width + LANES - 1) // LANES * LANES, (tokens + LANES - 1) // LANES * LANES
        keys_TP, values_TP = np.empty((whole, padded), np.float32), np.empty((whole, padded), np.float32)
        key_tiles = np.empty((whole // LANES * width, LANES), np.float32)
        queries_QP, out_QP = np.empty((Q, padded), np.float32), np.empty((Q, padded), np.float32)
        scores_QT, sums_Q = np.empty((Q, whole), np.float32), np.empty(Q, np.float32)
        take_rows(keys, row * tokens, kv_heads, kv, tokens, np.float32(1), keys_TP)
        take_rows(values, row * tokens, kv_heads, kv, tokens, np.float32(1), values_TP)
        make_tiles(keys_TP, width, key_tiles)
        first, scale = firsts[row % len(firsts)], np.float32(1) / np.sqrt(np.float32(width))
        groups = heads // kv_heads
        for head in range(kv * groups, (kv + 1) * groups):
            for q0 in range(0, tokens, Q):
                count = min(Q, tokens - q0)
                take_rows(queries, row * tokens + q0, heads, head, count, scale, queries_QP)
                _forward_block(queries_QP, key_tiles, values_TP, first, q0, tokens, width, scores_QT, sums_Q, out_QP)
                give_rows(out_QP, row * tokens + q0, heads, head, count, np.float32(1), out)
                for t in range(count):
                    sums[row * heads + head, q0 + t] = sums_Q[t]


@Loop
def _backward(data):
    call, _, start, stop = share(data)
    q_at, k_at, v_at, first_at, out_at, sums_at, grad_at, d_q_at, d_k_at, d_v_at = call[1:11]
    rows, tokens, heads, kv_heads, width, periods = call[11:17]
    queries, out = float32s(q_at, rows * tokens * heads, width), float32s(out_at, rows * tokens * heads, width)
    grads, d_q = float32s(grad_at, rows * tokens * heads, width), float32s(d_q_at, rows * tokens * heads, width)
    keys, values = float32s(k_at, rows * tokens * kv_heads, width), float32s(v_at, rows * tokens * kv_heads, width)
    d_k, d_v = float32s(d_k_at, rows * tokens * kv_heads, width), float32s(d_v_at, rows * tokens * kv_heads, width)
    firsts = int64s(first_at, periods * tokens).reshape(periods, tokens)
    sums = float32s(sums_at, rows * heads, tokens)
    for unit in range(start, stop):
        row, kv = unit // kv_heads, unit % kv_heads
        padded, whole = (width + LANES - 1) // LANES * LANES, (tokens + LANES - 1) // LANES * LANES
        keys_TP, values_TP = np.empty((whole, padded), np.float32), np.empty((whole, padded), np.float32)
        tiles = whole // LANES * width
        key_tiles, value_tiles = np.empty((tiles, LANES), np.float32), np.empty((tiles, LANES), np.float32)
        d_keys_TP, d_values_TP = np.zeros((whole, padded), np.float32), np.zeros((whole, padded), np.float32)
        queries_QP, grads_QP = np.empty((Q, padded), np.float32), np.empty((Q, padded), np.float32)
        out_QP = np.empty((Q, padded), np.float32)
        probs_QT, d_scores_QT = np.empty((Q, whole), np.float32), np.empty((Q, whole), np.float32)
        sums_Q, along_Q = np.empty(Q, np.float32), np.empty(Q, np.float32)
        take_rows(keys, row * tokens, kv_heads, kv, tokens, np.float32(1), keys_TP)
        take_rows(values, row * tokens, kv_heads, kv, tokens, np.float32(1), values_TP)
        make_tiles(keys_TP, width, key_tiles)
        make_tiles(values_TP, width, value_tiles)
        first, scale = firsts[row % len(firsts)], np.float32(1) / np.sqrt(np.float32(width))
        groups = heads // kv_heads
        for head in range(kv * groups, (kv + 1) * groups):
            for q0 in range(0, tokens, Q):
                count, at = min(Q, tokens - q0), row * tokens + q0
                take_rows(queries, at, heads, head, count, scale, queries_QP)
                take_rows(grads, at, heads, head, count, np.float32(1), grads_QP)
                take_rows(out, at, heads, head, count, np.float32(1), out_QP)
                for t in range(Q):
                    along_Q[t] = dot(grads_QP, out_QP, t)
                    sums_Q[t] = sums[row * heads + head, q0 + min(t, count - 1)]
                low, high = _backward_block(
                    *(queries_QP, grads_QP, key_tiles, value_tiles, first, q0, tokens, width),
                    *(sums_Q, along_Q, probs_QT, d_scores_QT),
                )
                for column in range(0, padded, LANES):
                    mix(d_scores_QT, low, high, keys_TP, column, out_QP)
                    spread(d_scores_QT, low, high, queries_QP, column, d_keys_TP)
                    spread(probs_QT, low, high, grads_QP, column, d_values_TP)
                give_rows(out_QP, at, heads, head, count, scale, d_q)
        give_rows(d_keys_TP, row * tokens, kv_heads, kv, tokens, np.float32(1), d_k)
        give_rows(d_values_TP, row * tokens, kv_heads, kv, tokens, np.float32(1), d_v)
