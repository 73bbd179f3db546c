"""How the tokens after the prompt are read: the only place that picks a way.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sqat.cpu.lean import LeanStep, find_hook, why_not_lean
from sqat.cuda.experts import FEW_TOKENS
from sqat.cuda.static import StaticStep
from sqat.model import Decoder, KVCache
from sqat.model.cache import RollingLayer


class Step(Protocol):
    """Reads one more token of every row, (B,); returns the logits of the next, (B, V), until it is called again."""

    def __call__(self, tokens_B: Tensor, /) -> Tensor: ...


class PlainStep:
    """The model itself, on the cache: whatever it is made of, wherever it is."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model = model
        self.cache = cache

    @torch.inference_mode()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        hidden_B1D, _ = self.model.hidden_states(tokens_B.unsqueeze(1), cache=self.cache)
        return self.model.head(hidden_B1D[:, 0])


def make_step(model: Decoder, cache: KVCache) -> Step:
    """The quickest way to go on from a cache filled with the prompts.

    On a CPU in float32 that is :class:`sqat.cpu.lean.LeanStep`, on a GPU a recorded graph; for a model with
    adapters, hooks or other types, and for a rolling cache on a CPU, the model itself. The weights must not change
    while a step is used.
    """
    device = model.embedding.weight.device.type
    rolls = isinstance(cache.layers[0], RollingLayer)
    if device == "cpu" and not rolls and why_not_lean(model) is None:
        return LeanStep(model, cache)
    if device == "cuda" and _can_be_recorded(model, len(cache.layers[0].keys)):
        return StaticStep(model, cache)
    return PlainStep(model, cache)


def _can_be_recorded(model: Decoder, rows: int) -> bool:
    """Whether a step waits for the device nowhere and runs nothing that a recording would leave out."""
    return find_hook(model) is None and (rows <= FEW_TOKENS or not model.config.is_moe)
