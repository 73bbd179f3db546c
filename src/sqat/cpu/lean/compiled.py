"""The two halves of a layer in a lean step, as compiled loops. They read the step's `x_BD`, always the same memory.

Shape letters: B rows, D width, E experts, F expert hidden, I = F (or 2F, gated).
"""

from __future__ import annotations

import numpy as np

from sqat.cpu.decode import ACTIVATIONS, AttendToCache, RunChosenExperts
from sqat.cpu.lean.attention import LeanAttention, Place
from sqat.cpu.lean.linear import Array, array, optional_array
from sqat.cpu.lean.norm import LeanNorm
from sqat.model.cache import LayerCache
from sqat.model.decoder import Block
from sqat.model.feedforward import FeedForward
from sqat.model.moe import MoE


class CompiledAttention(LeanAttention):
    """As :class:`LeanAttention`, in one call; for caches that do not roll."""

    def __init__(self, block: Block, cache: LayerCache, place: Place, x_BD: Array) -> None:
        super().__init__(block, cache, place)
        project, out = self.project, self.out_project
        width, rows = len(out.weight_OI), len(self.out_BI)
        turns_BC = place.turns.view(np.float32)[:, 0]
        first_B = np.zeros(rows, np.int64) if place.padding_B1 is None else place.padding_B1[:, 0].copy()
        self.update_BD = np.empty((rows, width), np.float32)
        self.call = AttendToCache(
            x_BD,
            *_norm_kind(self.norm),
            project.weight_OI,
            _or_zeros(project.bias_O, len(project.weight_OI)),
            *(turns_BC, self.keys_BKCS, self.values_BKSC, first_B),
            out.weight_OI,
            _or_zeros(out.bias_O, width),
            self.update_BD,
        )

    def __call__(self, x_BD: Array) -> Array:
        """What to add to the residual stream, (B, D); overwritten by the next call."""
        self.call.at(self.place.length - 1)
        return self.update_BD


class CompiledFeedForward:
    """`feedforward(norm2(x))`; a dense layer is a single expert."""

    def __init__(self, block: Block, x_BD: Array, activation: str) -> None:
        layer, rows = block.feedforward, len(x_BD)
        assert isinstance(layer, MoE | FeedForward)
        fc1, fc1_bias, fc2, fc2_bias, router, k = _moe(layer) if isinstance(layer, MoE) else _dense(layer)
        experts, width, _ = fc2.shape
        norm = LeanNorm(block.norm2, rows, width)
        gain = np.ones(width, np.float32) if norm.gain is None else norm.gain
        biases = _or_zeros(fc1_bias, experts, fc1.shape[1]), _or_zeros(fc2_bias, experts, width)
        self.update_BD = np.empty((rows, width), np.float32)
        self.call = RunChosenExperts(
            x_BD,
            *(*_norm_kind(norm), gain, _or_zeros(norm.shift, width)),
            *(router, k, fc1, biases[0], fc2, biases[1], ACTIVATIONS[activation]),
            self.update_BD,
        )

    def __call__(self, x_BD: Array) -> Array:
        """What to add to the residual stream, (B, D); overwritten by the next call."""
        self.call()
        return self.update_BD


_Experts = tuple[Array, Array | None, Array, Array | None, Array, int]


def _moe(moe: MoE) -> _Experts:
    fc1, fc2 = array(moe.fc1_weight), array(moe.fc2_weight)
    biases = optional_array(moe.fc1_bias), optional_array(moe.fc2_bias)
    return fc1, biases[0], fc2, biases[1], array(moe.router.weight), moe.experts_per_token


def _dense(dense: FeedForward) -> _Experts:
    fc1, fc2 = array(dense.fc1.weight)[None], array(dense.fc2.weight)[None]
    fc1_bias, fc2_bias = (None if layer.bias is None else array(layer.bias)[None] for layer in (dense.fc1, dense.fc2))
    return fc1, fc1_bias, fc2, fc2_bias, np.zeros((1, fc1.shape[2]), np.float32), 1


def _norm_kind(norm: LeanNorm) -> tuple[bool, np.float32]:
    """(whether the mean is taken off, what is added to the sum of squares; below zero where there is no norm)."""
    return norm.centred, np.float32(-1) if norm.gain is None else norm.eps_1[0]


def _or_zeros(values: Array | None, *shape: int) -> Array:
    return np.zeros(shape, np.float32) if values is None else values
