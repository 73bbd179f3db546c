"""The whole lean step: embedding, layers, head.

Shape letters: B rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from sqat import cpu as kernels
from sqat.config import ModelConfig
from sqat.cpu.lean.attention import LeanAttention, Place
from sqat.cpu.lean.blas import one_thread
from sqat.cpu.lean.experts import LeanMoE
from sqat.cpu.lean.feedforward import LeanFeedForward
from sqat.cpu.lean.linear import Array, LeanLinear, array, optional_array
from sqat.cpu.lean.norm import LeanNorm
from sqat.model import Decoder, KVCache
from sqat.model.cache import LayerCache
from sqat.model.decoder import Block
from sqat.model.feedforward import FeedForward
from sqat.model.moe import MoE

# Up to how many multiply-adds in a layer's largest product a step runs in one thread: some 30 µs of one core, where
# waking another and waiting for it would cost about what it brings, and far more on a busy machine.
ONE_THREAD_PRODUCT = 2**20
COMPILED_ATTENTION_ROWS = 16  # with more, numpy's library is the quicker


class LeanStep:
    """Reads one more token of every row, and gives the logits of the next.

    Weights are taken when it is built (most shared, some folded), so it serves while they do not change. It goes on
    from `cache`, whose `length` stays what it is.

    Args:
        model: one without a reason against it (:func:`why_not_lean`).
        cache: filled with the prompts.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        config = model.config
        rows = len(cache.layers[0].keys)
        alone = torch.get_num_threads() == 1 or _largest_product(config, rows) <= ONE_THREAD_PRODUCT
        self.threads = one_thread if alone else nullcontext
        compiled = alone and kernels.available()
        self.place = Place(cache, config.num_score_heads, config.rope_theta)
        self.x_BD = np.empty((rows, config.hidden_size), np.float32)
        self.embedding_VD = array(model.embedding.weight)
        self.parts: list[Callable[[Array], Array]] = []
        for block, layer_cache in zip(model.layers, cache.layers, strict=True):
            assert isinstance(block, Block)
            self.parts += _halves(block, layer_cache, self.place, self.x_BD, config.activation, compiled)
        self.final_norm = LeanNorm(model.final_norm, rows, config.hidden_size)
        self.head = LeanLinear(array(model.head.weight), optional_array(model.head.bias), rows)
        self.logits_BV = torch.from_numpy(self.head.out_BO)

    def __call__(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) after one more token in every row; the next call writes over them.

        Raises:
            ValueError: the cache is full.
        """
        self.place.advance()
        x_BD = self.embedding_VD.take(tokens_B.numpy(), 0, self.x_BD, "clip")
        with self.threads():
            for part in self.parts:
                np.add(x_BD, part(x_BD), x_BD)
            self.head(self.final_norm(x_BD))
        return self.logits_BV


def _halves(
    block: Block, cache: LayerCache, place: Place, x_BD: Array, activation: str, compiled: bool
) -> list[Callable[[Array], Array]]:
    """A layer's attention and feed-forward."""
    rows, feedforward = len(cache.keys), block.feedforward
    if compiled:
        from sqat.cpu.lean.compiled import CompiledAttention, CompiledFeedForward

        fits = rows <= COMPILED_ATTENTION_ROWS
        attention = CompiledAttention(block, cache, place, x_BD) if fits else LeanAttention(block, cache, place)
        return [attention, CompiledFeedForward(block, x_BD, activation)]
    if isinstance(feedforward, MoE):
        return [LeanAttention(block, cache, place), LeanMoE(feedforward, block.norm2, rows)]
    assert isinstance(feedforward, FeedForward)
    return [LeanAttention(block, cache, place), LeanFeedForward(feedforward, block.norm2, rows, activation)]


def _largest_product(config: ModelConfig, rows: int) -> float:
    """Multiply-adds of a layer's largest matrix product; an expert's, if rows spread evenly."""
    inner = config.intermediate_size * (2 if config.gated else 1)
    share = max(rows * config.experts_per_token / config.num_experts, 1) if config.is_moe else rows
    projected = (config.num_score_heads + 2 * config.num_kv_heads) * config.head_dim
    return config.hidden_size * max(share * inner, rows * projected)
