"""One more token of some rows: a layer's two halves, each a single call.

Each is written as the formulas are; with matrices this small the compiler's loops are as quick as a matrix library,
and what was between two hundred calls of one is gone. All arrays are contiguous float32. Norms are those of
:class:`sqat.cpu.lean.norm.LeanNorm`: x / sqrt(Σx² + eps), with the mean taken off first where `centred`, and
nothing at all for `eps` below zero; their gain is multiplied into the next matrix, or given.

Shape letters: B rows, D width, P = (H + 2K)·C, H query heads, K key/value heads, C head_dim, S positions, E experts, F
hidden, I = F (or 2F, gated), M rows that chose an expert.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from sqat.cpu.arguments import exp, float32s, inline, int64s, number
from sqat.cpu.threads import Call, compiled

ACTIVATIONS = {"silu": 0, "swish": 0, "gelu": 1, "relu": 2, "sigmoid": 3, "linear": 4}


class AttendToCache(Call):
    """`attention(norm(x))` into `update_BD`; the new keys and values go to a position of the cache, where a row's first
    ones are those at `first_B`.

    `project_PD` gives queries (scaled by 1/sqrt(C)), keys and values; pairs that rotary embedding turns are neighbours,
    and so are cosines and sines in `turns_BC`, whose only row may serve all.
    """

    def __init__(
        self,
        x_BD,
        centred,
        eps,
        project_PD,
        bias_P,
        turns_BC,
        keys_BKCS,
        values_BKSC,
        first_B,
        out_DI,
        out_bias_D,
        update_BD,
    ):
        rows, kv_heads, head_dim, capacity = keys_BKCS.shape
        sizes = (rows, x_BD.shape[1], len(bias_P), kv_heads, head_dim, capacity, len(turns_BC))
        places = (project_PD, bias_P, turns_BC, keys_BKCS, values_BKSC, first_B, out_DI, out_bias_D, update_BD)
        super().__init__(_attention(), 0, x_BD, int(centred), float(eps), *places, *sizes)

    def at(self, position: int) -> None:
        """Run for the token at `position`."""
        self.data[0] = position
        self()


class RunChosenExperts(Call):
    """The weighted sum of the k experts that the router prefers for `norm(x) · gain + shift`, into `update_BD`.

    The weights are the softmax over the k largest router outputs: what is left of the softmax over all of them once its
    k largest values are made to sum to one. `activation` is one of `ACTIVATIONS`.
    """

    def __init__(
        self,
        x_BD,
        centred,
        eps,
        gain_D,
        shift_D,
        router_ED,
        k,
        fc1_EID,
        fc1_bias_EI,
        fc2_EDF,
        fc2_bias_ED,
        activation,
        update_BD,
    ):
        experts, inner, width = fc1_EID.shape
        sizes = (len(x_BD), width, experts, inner, fc2_EDF.shape[2])
        places = (gain_D, shift_D, router_ED, fc1_EID, fc1_bias_EI, fc2_EDF, fc2_bias_ED, update_BD)
        super().__init__(_experts(), x_BD, int(centred), float(eps), k, activation, *places, *sizes)


@cache
def _attention() -> Any:
    def body(call):
        position, rows, width, projected, kv_heads, head_dim = call[0], call[13], call[14], call[15], call[16], call[17]
        project_PD, bias_P = float32s(call[4], projected, width), float32s(call[5], 1, projected)[0]
        turns_BC, first_B = float32s(call[6], call[19], head_dim), int64s(call[9], rows)
        heads = projected // head_dim - 2 * kv_heads
        projected_BP, read_BI = np.empty((rows, projected), np.float32), np.empty((rows, heads * head_dim), np.float32)
        normed_BD = _normed(float32s(call[1], rows, width), call[2], number(call[3]))
        _multiply(project_PD, normed_BD, bias_P, projected_BP)
        probs_S, groups = np.empty(position + 1, np.float32), heads // kv_heads
        capacity = call[18]
        keys = float32s(call[7], rows * kv_heads * head_dim, capacity)  # all heads' elements, each at all positions
        values = float32s(call[8], rows * kv_heads * capacity, head_dim)  # all heads' positions
        for b in range(rows):
            _rotate(projected_BP[b], turns_BC[min(b, len(turns_BC) - 1)], (heads + kv_heads) * head_dim)
            for k in range(kv_heads):
                for c in range(head_dim):
                    own = b * kv_heads + k
                    keys[own * head_dim + c, position] = projected_BP[b, (heads + k) * head_dim + c]
                    values[own * capacity + position, c] = projected_BP[b, (heads + kv_heads + k) * head_dim + c]
            for h in range(heads):
                own = b * kv_heads + h // groups
                _attend_head(projected_BP[b], h * head_dim, keys, values, own, first_B[b], probs_S, read_BI[b])
        out_DI, out_bias_D = float32s(call[10], width, heads * head_dim), float32s(call[11], 1, width)[0]
        _multiply(out_DI, read_BI, out_bias_D, float32s(call[12], rows, width))

    return compiled(body)


@cache
def _experts() -> Any:
    def body(call):
        rows, width, experts, inner, hidden = call[13], call[14], call[15], call[16], call[17]
        gain_D, shift_D = float32s(call[5], 1, width)[0], float32s(call[6], 1, width)[0]
        fc1, fc1_bias_EI = float32s(call[8], experts * inner, width), float32s(call[9], experts, inner)
        fc2, fc2_bias_ED = float32s(call[10], experts * width, hidden), float32s(call[11], experts, width)
        update_BD = float32s(call[12], rows, width)
        normed_BD = _normed(float32s(call[0], rows, width), call[1], number(call[2]))
        for b in range(rows):
            for d in range(width):
                normed_BD[b, d] = normed_BD[b, d] * gain_D[d] + shift_D[d]
                update_BD[b, d] = 0
        weights_EB = _route(float32s(call[7], experts, width), normed_BD, call[3])
        chosen_M, hidden_MI = np.empty(rows, np.int64), np.empty((rows, inner), np.float32)
        activated_MF = np.empty((rows, hidden), np.float32)
        for e in range(experts):
            count = 0
            for b in range(rows):
                if weights_EB[e, b] > 0:
                    chosen_M[count] = b
                    count += 1
            if count == 0:
                continue
            for i in range(inner):  # a row of weights at a time: it is read once, however many chose it
                for m in range(count):
                    hidden_MI[m, i] = _dot(fc1[e * inner + i], normed_BD[chosen_M[m]]) + fc1_bias_EI[e, i]
            for m in range(count):
                _activate(hidden_MI[m], call[4], activated_MF[m])
            for d in range(width):
                for m in range(count):
                    b = chosen_M[m]
                    update_BD[b, d] += weights_EB[e, b] * (
                        _dot(fc2[e * width + d], activated_MF[m]) + fc2_bias_ED[e, d]
                    )

    return compiled(body)


@inline
def _normed(x_BD, centred, eps):
    rows, width = x_BD.shape
    out_BD = np.empty((rows, width), np.float32)
    for b in range(rows):
        mean, squares = np.float32(0), np.float32(0)
        if centred:
            for d in range(width):
                mean += x_BD[b, d]
            mean /= np.float32(width)
        for d in range(width):
            out_BD[b, d] = x_BD[b, d] - mean
            squares += out_BD[b, d] * out_BD[b, d]
        scale = np.float32(1) / np.sqrt(squares + eps) if eps >= 0 else np.float32(1)
        for d in range(width):
            out_BD[b, d] *= scale
    return out_BD


@inline
def _dot(a_I, b_I):
    total = np.float32(0)
    for i in range(len(a_I)):
        total += a_I[i] * b_I[i]
    return total


@inline
def _multiply(weight_OI, x_BI, bias_O, out_BO):
    for o in range(len(weight_OI)):
        for b in range(len(x_BI)):
            out_BO[b, o] = _dot(weight_OI[o], x_BI[b]) + bias_O[o]


@inline
def _rotate(pairs, turns_C, size):
    for i in range(0, size, 2):
        cos, sin = turns_C[i % len(turns_C)], turns_C[i % len(turns_C) + 1]
        a, b = pairs[i], pairs[i + 1]
        pairs[i], pairs[i + 1] = a * cos - b * sin, a * sin + b * cos


@inline
def _attend_head(queries, start, keys, values, head, first, probs_S, out):
    count, largest, total = len(probs_S), np.float32(-np.inf), np.float32(0)
    head_dim, capacity = values.shape[1], keys.shape[1]
    for s in range(count):
        probs_S[s] = 0 if s >= first else -np.inf
    for c in range(head_dim):
        element = queries[start + c]
        for s in range(count):
            probs_S[s] += element * keys[head * head_dim + c, s]
    for s in range(count):
        largest = max(largest, probs_S[s])
    for s in range(count):
        probs_S[s] = exp(probs_S[s] - largest)
        total += probs_S[s]
    for c in range(head_dim):
        out[start + c] = 0
    for s in range(first, count):
        for c in range(head_dim):
            out[start + c] += probs_S[s] * values[head * capacity + s, c]
    for c in range(head_dim):
        out[start + c] /= total


@inline
def _route(router_ED, x_BD, k):
    """The weight of each expert in each row; zero where it was not chosen."""
    rows, experts = len(x_BD), len(router_ED)
    weights_EB, logits_E = np.empty((experts, rows), np.float32), np.empty(experts, np.float32)
    for b in range(rows):
        for e in range(experts):
            logits_E[e], weights_EB[e, b] = _dot(router_ED[e], x_BD[b]), 0
        largest, total = np.float32(0), np.float32(0)
        for i in range(k):
            best = 0
            for e in range(experts):
                if logits_E[e] > logits_E[best]:
                    best = e
            largest = logits_E[best] if i == 0 else largest
            weights_EB[best, b] = exp(logits_E[best] - largest) + np.float32(1e-38)  # however small: it was chosen
            total += weights_EB[best, b]
            logits_E[best] = -np.inf
        for e in range(experts):
            weights_EB[e, b] /= total
    return weights_EB


@inline
def _activate(hidden_I, activation, out_F):
    """Gated where `hidden_I` is twice as long: linear · activation(gate)."""
    gated = len(hidden_I) > len(out_F)
    for f in range(len(out_F)):
        x = hidden_I[len(out_F) + f] if gated else hidden_I[f]
        if activation == 0:
            y = x / (np.float32(1) + exp(-x))
        elif activation == 1:
            y = np.float32(0.5) * x * (np.float32(1) + math.erf(x * np.float32(0.7071067811865476)))
        elif activation == 2:
            y = max(x, np.float32(0))
        elif activation == 3:
            y = np.float32(1) / (np.float32(1) + exp(-x))
        else:
            y = x
        out_F[f] = hidden_I[f] * y if gated else y
