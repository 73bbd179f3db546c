"""Attention of a lean step: one new token in every row against the cache.

Shape letters: B rows, D width, H query heads (as many as key/value heads in reverse SQA, repeated), K key/value heads,
G = H/K query heads of each, C head_dim, S positions, P = (H + 2K)·C outputs of the three
projections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sqat.cpu.lean.linear import Array, LeanLinear, array, optional_array
from sqat.cpu.lean.norm import LeanNorm
from sqat.model.attention import Attention
from sqat.model.cache import KVCache, LayerCache
from sqat.model.decoder import Block


class Place:
    """What all layers share in a step: the position, its rotation, and memory for scores.

    Args:
        cache: filled with the prompts.
        num_query_heads, theta: of the model.
    """

    def __init__(self, cache: KVCache, num_query_heads: int, theta: float) -> None:
        rows, kv_heads, self.capacity, head_dim = cache.layers[0].keys.shape
        self.length = cache.length
        self.key_index: tuple[Any, ...] = ()  # where this position's keys go in (B, K, C, S), values in (B, K, S, C)
        self.value_index: tuple[Any, ...] = ()
        self.stop = min(self.length, self.capacity)  # slots in use
        self.scores = np.empty(rows * num_query_heads * self.capacity, np.float32)
        self.heads = (rows, kv_heads, num_query_heads // kv_heads)
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.divisors = (theta**exponents).numpy()  # as :func:`sqat.model.rope.rotary_tables` has them
        self.padding_B1: NDArray[np.int64] | None = None
        self.hidden_B11S: Array | None = None
        if cache.padding_B is not None:
            self.padding_B1 = cache.padding_B.numpy()[:, None]
            padded = np.arange(self.capacity) < self.padding_B1
            self.hidden_B11S = np.where(padded, np.float32(-np.inf), np.float32(0))[:, None, None]
        turn_rows = 1 if self.padding_B1 is None else rows
        self.turns = np.empty((turn_rows, 1, head_dim // 2), np.complex64)
        self.angles = np.empty((turn_rows, head_dim // 2), np.float32)
        self.scores_BKGS = self._scores()

    def advance(self) -> None:
        """Go on to the next position.

        Raises:
            ValueError: the cache is full.
        """
        if self.length >= self.capacity:
            raise ValueError(f"key/value cache holds {self.capacity} positions, but {self.length + 1} are needed")
        position = self.length if self.padding_B1 is None else self.length - self.padding_B1
        np.divide(np.float32(position), self.divisors, self.angles)
        np.cos(self.angles, self.turns.real[:, 0])
        np.sin(self.angles, self.turns.imag[:, 0])
        self.key_index, self.value_index = (..., self.length), (slice(None), slice(None), self.length)
        self.length += 1
        self.stop = min(self.length, self.capacity)
        self.scores_BKGS = self._scores()

    def _scores(self) -> Array:
        """Room for the scores; contiguous, since exponentials of anything else take twice as long."""
        rows, kv_heads, groups = self.heads
        return self.scores[: rows * kv_heads * groups * self.stop].reshape(rows, kv_heads, groups, self.stop)


class LeanAttention:
    """`attention(norm1(x))` for one more token in every row.

    One matrix gives queries, keys and values. Into it are multiplied the norm's weights and 1/sqrt(C), and pairs that
    rotary embedding turns are neighbours in it (which changes no score), so that the rotation is one product of complex
    numbers. Keys lie with the positions last: scores then read memory in order.
    """

    def __init__(self, block: Block, cache: LayerCache, place: Place) -> None:
        attention = block.attention
        rows, kv_heads, capacity, head_dim = cache.keys.shape
        width = attention.out_proj.out_features
        num_query_heads = attention.out_proj.in_features // head_dim
        num_projected = num_query_heads + 2 * kv_heads
        self.place = place
        self.norm = LeanNorm(block.norm1, rows, width)
        order = torch.arange(head_dim).view(2, -1).T.flatten()  # 0, C/2, 1, C/2 + 1, …
        self.project = LeanLinear(*_fused(attention, self.norm, order), rows)
        out = attention.out_proj
        self.out_project = LeanLinear(array(out.weight), optional_array(out.bias), rows)

        self.keys_BKCS = np.zeros((rows, kv_heads, head_dim, capacity), np.float32)
        filled = cache.keys[:, :, : place.stop, order]
        self.keys_BKCS[..., : place.stop] = filled.transpose(2, 3).numpy()
        self.values_BKSC = array(cache.values)

        heads = self.project.out_BO.reshape(rows, num_projected, head_dim)
        self.q_BKGC = heads[:, :num_query_heads].reshape(rows, kv_heads, -1, head_dim)
        self.k_BKC, self.v_BKC = heads[:, num_query_heads:-kv_heads], heads[:, -kv_heads:]
        self.pairs_BHC = heads[:, :-kv_heads].view(np.complex64)
        self.total_BKG1 = np.empty((*self.q_BKGC.shape[:3], 1), np.float32)
        self.out_BKGC = np.empty(self.q_BKGC.shape, np.float32)
        self.out_BI = self.out_BKGC.reshape(rows, -1)

    def __call__(self, x_BD: Array) -> Array:
        """What to add to the residual stream, (B, D); overwritten by the next call."""
        place = self.place
        self.project(self.norm.unit(x_BD))
        np.multiply(self.pairs_BHC, place.turns, self.pairs_BHC)
        stop = place.stop
        self.keys_BKCS[place.key_index] = self.k_BKC
        self.values_BKSC[place.value_index] = self.v_BKC

        scores, total = place.scores_BKGS, self.total_BKG1
        np.matmul(self.q_BKGC, self.keys_BKCS[..., :stop], scores)
        if place.hidden_B11S is not None:
            np.add(scores, place.hidden_B11S[..., :stop], scores)
        np.maximum.reduce(scores, 3, out=total, keepdims=True)
        np.subtract(scores, total, scores)
        np.exp(scores, scores)
        np.add.reduce(scores, 3, out=total, keepdims=True)
        np.matmul(scores, self.values_BKSC[:, :, :stop], self.out_BKGC)
        np.divide(self.out_BKGC, total, self.out_BKGC)
        return self.out_project(self.out_BI)


def _fused(attention: Attention, norm: LeanNorm, order: Tensor) -> tuple[Array, Array | None]:
    """The matrix (P, D) of all three projections, and their bias (P,), if any."""
    head_dim = attention.head_dim
    times = attention.out_proj.in_features // attention.q_proj.out_features  # more than once in reverse SQA
    weights, biases = [], []
    for linear, repeated, scale, turned in (
        (attention.q_proj, times, head_dim**-0.5, True),
        (attention.k_proj, 1, 1.0, True),
        (attention.v_proj, 1, 1.0, False),
    ):
        weight_HCD = linear.weight.unflatten(0, (-1, head_dim)).repeat_interleave(repeated, dim=0) * scale
        bias_HC = _bias(linear, norm).unflatten(0, (-1, head_dim)).repeat_interleave(repeated, dim=0) * scale
        weights.append((weight_HCD[:, order] if turned else weight_HCD).flatten(0, 1))
        biases.append((bias_HC[:, order] if turned else bias_HC).flatten())
    weight_PD, bias_P = array(torch.cat(weights)), array(torch.cat(biases))
    weight_PD = weight_PD if norm.gain is None else weight_PD * norm.gain
    return weight_PD, bias_P if norm.shift is not None or attention.q_proj.bias is not None else None


def _bias(linear: nn.Linear, norm: LeanNorm) -> Tensor:
    """The projection's bias, with what the norm's shift becomes in the projection."""
    bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
    return bias if norm.shift is None else bias + linear.weight @ torch.from_numpy(norm.shift)
