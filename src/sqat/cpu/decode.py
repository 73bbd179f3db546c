"""One decoding step, all layers and the head, as one compiled loop.

A small model's step is hundreds of operations of a microsecond or two, and torch spends longer on starting each of them
than on computing it. With matrices times so few rows, plain loops are as quick as a matrix library, so the whole step
is a single call: threads share each matrix's rows, and meet at a barrier wherever one needs what the others computed.

The arguments are records of sizes and addresses: :data:`STEP` and, for each layer, :data:`LAYER`. All arrays are
contiguous; where no type is named, they are float32. A missing bias is zeros, a missing norm an address of 0; a dense
layer is a single expert. Norms are RMSNorm, the activation is gated SiLU. Sizes have the names of the configuration.

Shape letters: B rows, D width, V vocabulary, H query heads, K key/value heads, C head_dim, A = max(H, K) heads of
attention scores, P = (H + 2K)·C, S positions, E experts, k experts per row, F hidden, I = 2F (linear and gate).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, types

from sqat.cpu.arguments import barrier, exp, float32s, inline, int64s, part, pointer
from sqat.cpu.threads import compile_callback

_MATRIX = np.dtype([("weight", np.int64), ("bias", np.int64)])  # (O, I) and (O), or E of them

_HEADS = ("num_query_heads", "num_kv_heads", "head_dim")
CONFIG_SIZES = ("hidden_size", "vocab_size", "num_layers", *_HEADS, "intermediate_size")
LAYER = np.dtype(
    [
        *((name, _MATRIX) for name in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
        *((name, np.int64) for name in ("norm1_D", "norm2_D", "keys_BKCS", "values_BKSC", "router_ED")),
    ]
)
STEP = np.dtype(
    [
        *((name, np.int64) for name in ("position", "rows", "capacity", "num_experts", "experts_per_token")),
        *((name, np.int64) for name in CONFIG_SIZES),
        *((name, np.int64) for name in ("layers", "first_B", "cos_SC", "sin_SC")),  # first_B int64, tables (S, C/2)
        ("norm_eps", np.float64),
        ("final_norm_D", np.int64),
        ("head", _MATRIX),
        # In and out: the rows' embeddings, which become their residual stream; and memory for what threads share.
        *((name, np.int64) for name in ("x_BD", "logits_BV", "projected_BP", "attended_BI", "hidden_BkI")),
    ]
)


@cache
def decoding_step() -> Any:
    """The compiled step, for every thread of a team to run; its one argument is the address of a :data:`STEP`."""

    def run(data):
        step = carray(data, 1)[0]
        layers = carray(pointer(step.layers), step.num_layers, LAYER)
        rows, width, head_dim, eps = step.rows, step.hidden_size, step.head_dim, step.norm_eps
        queries, kv_size = step.num_query_heads * head_dim, step.num_kv_heads * head_dim
        x_BD, normed_BD = float32s(step.x_BD, rows, width), np.empty((rows, width), np.float32)
        projected_BP = float32s(step.projected_BP, rows, queries + 2 * kv_size)
        attended_BI = float32s(step.attended_BI, rows, max(queries, kv_size))
        hidden_BkI = float32s(step.hidden_BkI, rows * step.experts_per_token, 2 * step.intermediate_size)
        experts_Bk = np.empty(len(hidden_BkI), np.int64)
        weights_Bk = np.empty(len(hidden_BkI), np.float32)
        for i in range(step.num_layers):
            layer = layers[i]
            _normalise(layer.norm1_D, eps, x_BD, normed_BD)
            start = 0
            for matrix, outputs in ((layer.q_proj, queries), (layer.k_proj, kv_size), (layer.v_proj, kv_size)):
                _multiply(matrix, normed_BD, projected_BP, start, outputs, False)
                start += outputs
            barrier()
            _attend(step, layer, projected_BP, attended_BI)
            barrier()
            _multiply(layer.out_proj, attended_BI, x_BD, 0, width, True)
            barrier()
            _normalise(layer.norm2_D, eps, x_BD, normed_BD)
            _route(float32s(layer.router_ED, step.num_experts, width), normed_BD, experts_Bk, weights_Bk)
            _hidden(step, layer, normed_BD, experts_Bk, hidden_BkI)
            barrier()
            _add_experts(step, layer, hidden_BkI, experts_Bk, weights_Bk, x_BD)
            barrier()
        _normalise(step.final_norm_D, eps, x_BD, normed_BD)
        logits_BV = float32s(step.logits_BV, rows, step.vocab_size)
        _multiply(step.head, normed_BD, logits_BV, 0, step.vocab_size, False)

    return compile_callback(run, types.CPointer(from_dtype(STEP)), level=2)  # whoever wants an answer waits


@inline
def _normalise(weight_D, eps, x_BD, out_BD):
    rows, width = x_BD.shape
    gain_D = float32s(weight_D, 1, width)[0]
    for b in range(rows):
        squares = np.float32(0)
        for d in range(width):
            squares += x_BD[b, d] * x_BD[b, d]
        scale = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(eps))
        for d in range(width):
            out_BD[b, d] = x_BD[b, d] * scale * gain_D[d] if weight_D else x_BD[b, d]


@inline
def _dot(a_I, b_I):
    total = np.float32(0)
    for i in range(len(a_I)):
        total += a_I[i] * b_I[i]
    return total


@inline
def _multiply(matrix, x_BI, out_BO, start, outputs, add):
    """This thread's share of `outputs` columns of `out_BO`, from `start` on: set, or added to."""
    weight_OI, bias_O = float32s(matrix.weight, outputs, x_BI.shape[1]), float32s(matrix.bias, 1, outputs)[0]
    first, stop = part(outputs)
    for o in range(first, stop):  # each row of weights is read once, whatever the number of rows
        for b in range(len(x_BI)):
            product = _dot(weight_OI[o], x_BI[b]) + bias_O[o]
            out_BO[b, start + o] = out_BO[b, start + o] + product if add else product


@inline
def _attend(step, layer, projected_BP, attended_BI):
    """This thread's key/value heads: their new key and value go into the cache, then their query heads read it."""
    position, capacity, head_dim = step.position, step.capacity, step.head_dim
    query_heads, kv_heads, half = step.num_query_heads, step.num_kv_heads, step.head_dim // 2
    score_heads = max(query_heads, kv_heads)
    groups, scale = score_heads // kv_heads, np.float32(1) / np.sqrt(np.float32(head_dim))
    cos_SC, sin_SC = float32s(step.cos_SC, capacity, half), float32s(step.sin_SC, capacity, half)
    first_B = int64s(step.first_B, step.rows)
    keys = float32s(layer.keys_BKCS, step.rows * kv_heads * head_dim, capacity)  # every element at all positions
    values = float32s(layer.values_BKSC, step.rows * kv_heads * capacity, head_dim)
    turned_C, probs_S = np.empty(head_dim, np.float32), np.empty(position + 1, np.float32)
    first_head, stop_head = part(step.rows * kv_heads)
    for head in range(first_head, stop_head):
        b, k = head // kv_heads, head % kv_heads
        first = first_B[b]
        cos_C, sin_C = cos_SC[position - first], sin_SC[position - first]
        _rotate(projected_BP[b, (query_heads + k) * head_dim :], cos_C, sin_C, np.float32(1), turned_C)
        for c in range(head_dim):
            keys[head * head_dim + c, position] = turned_C[c]
            values[head * capacity + position, c] = projected_BP[b, (query_heads + kv_heads + k) * head_dim + c]
        for h in range(k * groups, (k + 1) * groups):
            query = h * query_heads // score_heads  # in reverse SQA several key/value heads have the same
            _rotate(projected_BP[b, query * head_dim :], cos_C, sin_C, scale, turned_C)
            out_C = attended_BI[b, h * head_dim : (h + 1) * head_dim]
            _attend_head(turned_C, keys, values, head, first, probs_S, out_C)


@inline
def _rotate(pairs, cos_C, sin_C, scale, out_C):
    half = len(cos_C)
    for c in range(half):
        a, b = pairs[c] * scale, pairs[half + c] * scale
        out_C[c], out_C[half + c] = a * cos_C[c] - b * sin_C[c], a * sin_C[c] + b * cos_C[c]


@inline
def _attend_head(query_C, keys, values, head, first, probs_S, out_C):
    count, largest, total = len(probs_S), np.float32(-np.inf), np.float32(0)
    head_dim, capacity = len(query_C), keys.shape[1]
    for s in range(first, count):
        probs_S[s] = 0
    for c in range(head_dim):
        for s in range(first, count):
            probs_S[s] += query_C[c] * keys[head * head_dim + c, s]
    for s in range(first, count):
        largest = max(largest, probs_S[s])
    for s in range(first, count):
        probs_S[s] = exp(probs_S[s] - largest)
        total += probs_S[s]
    for c in range(head_dim):
        out_C[c] = 0
    for s in range(first, count):
        for c in range(head_dim):
            out_C[c] += probs_S[s] * values[head * capacity + s, c]
    for c in range(head_dim):
        out_C[c] /= total


@inline
def _route(router_ED, x_BD, experts_Bk, weights_Bk):
    """The k experts that the router prefers in each row, and their weights: the softmax over their k logits, which is
    that over all of them once the k largest are made to sum to one. Every thread does it for itself.
    """
    experts, k = len(router_ED), len(experts_Bk) // len(x_BD)
    logits_E = np.zeros(experts, np.float32)
    for b in range(len(x_BD)):
        for e in range(experts):
            logits_E[e] = _dot(router_ED[e], x_BD[b]) if experts > 1 else 0
        total, largest = np.float32(0), np.float32(0)
        for i in range(b * k, (b + 1) * k):
            best = 0
            for e in range(experts):
                if logits_E[e] > logits_E[best]:
                    best = e
            largest = logits_E[best] if i == b * k else largest
            experts_Bk[i], weights_Bk[i] = best, exp(logits_E[best] - largest)
            total += weights_Bk[i]
            logits_E[best] = -np.inf
        for i in range(b * k, (b + 1) * k):
            weights_Bk[i] /= total


@inline
def _select(expert, experts_Bk, chosen_M):
    """Write down which of the selections are this expert's; returns how many."""
    count = 0
    for i in range(len(experts_Bk)):
        if experts_Bk[i] == expert:
            chosen_M[count] = i
            count += 1
    return count


@inline
def _hidden(step, layer, x_BD, experts_Bk, hidden_BkI):
    """This thread's share of the chosen experts' hidden units, activated: they are the first F of `hidden_BkI`."""
    hidden, k = step.intermediate_size, step.experts_per_token
    fc1 = float32s(layer.fc1.weight, step.num_experts * 2 * hidden, step.hidden_size)
    fc1_bias_EI = float32s(layer.fc1.bias, step.num_experts, 2 * hidden)
    chosen_M = np.empty(len(experts_Bk), np.int64)
    first, stop = part(hidden)
    for e in range(step.num_experts):
        count = _select(e, experts_Bk, chosen_M)
        for start in range(0, 2 * hidden if count else 0, hidden):  # linear, then gate
            for i in range(start + first, start + stop):
                for m in range(count):
                    product = _dot(fc1[e * 2 * hidden + i], x_BD[chosen_M[m] // k])
                    hidden_BkI[chosen_M[m], i] = product + fc1_bias_EI[e, i]
    for s in range(len(experts_Bk)):
        linear_F, gate_F = hidden_BkI[s, :hidden], hidden_BkI[s, hidden:]
        for f in range(first, stop):
            linear_F[f] *= gate_F[f] / (np.float32(1) + exp(-gate_F[f]))


@inline
def _add_experts(step, layer, hidden_BkI, experts_Bk, weights_Bk, x_BD):
    """This thread's share of the width: the weighted sum of the chosen experts, added to `x_BD`."""
    width, hidden, k = step.hidden_size, step.intermediate_size, step.experts_per_token
    fc2 = float32s(layer.fc2.weight, step.num_experts * width, hidden)
    fc2_bias_ED = float32s(layer.fc2.bias, step.num_experts, width)
    chosen_M = np.empty(len(experts_Bk), np.int64)
    first, stop = part(width)
    for e in range(step.num_experts):
        count = _select(e, experts_Bk, chosen_M)
        for d in range(first, stop if count else first):
            for m in range(count):
                s = chosen_M[m]
                y = _dot(fc2[e * width + d], hidden_BkI[s, :hidden]) + fc2_bias_ED[e, d]
                x_BD[s // k, d] += weights_Bk[s] * y
