"""The language model: embedding, layers, head.

Shape letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sqat.config import ModelConfig
from sqat.cpu import tiled
from sqat.model.block import Block
from sqat.model.cache import KVCache
from sqat.model.init import initialise
from sqat.model.mask import AttentionMask
from sqat.model.memory import require_memory
from sqat.model.moe import RouterStats
from sqat.model.norm import make_norm
from sqat.model.rope import rotary_tables


class DecoderOutput(NamedTuple):
    """Logits (B, T, V) and, for mixture-of-experts models, one entry of router statistics per layer."""

    logits: Tensor
    router: tuple[RouterStats, ...]


class Decoder(nn.Module):
    """A causal language model whose attention is described by `config`.

    Nothing is kept on the module during a forward pass: caches come in as arguments, router statistics go out as
    results. Set `gradient_checkpointing` to recompute layers in backward instead of keeping their activations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        drawn = torch.get_default_device().type != "meta"
        if drawn:
            require_memory(config)
        seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_()) if drawn else 0  # before the layers draw
        self.config = config
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = make_norm(config.final_norm, config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if self.embedding.weight.device.type != "meta":
            initialise(self, seed)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        real: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> DecoderOutput:
        """Logits for every token; the arguments are those of :meth:`hidden_states`."""
        hidden_BTD, router = self.hidden_states(
            tokens_BT, positions=positions, documents=documents, real=real, cache=cache
        )
        return DecoderOutput(self.head(hidden_BTD), router)

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        real: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, tuple[RouterStats, ...]]:
        """What the head reads, (B, T, D), and the router statistics of each layer (empty if the model is dense).

        Args:
            tokens_BT: token ids, (B, T), each in [0, V).
            positions: (T,) or (B, T); by default 0, 1, …, or following the cache.
            documents: (B, T); tokens attend within equal numbers only (packed rows). Not with a cache.
            real: (B, T), false at padding, which then does not count in router statistics.
            cache: keys and values of earlier tokens; those of these tokens are appended.

        Raises:
            ValueError: `documents` together with `cache`.
        """
        if documents is not None and cache is not None:
            raise ValueError(
                "documents and cache exclude each other: packed rows are for training, a cache is for generation"
            )
        num_tokens = tokens_BT.shape[1]
        if positions is None:
            start = torch.arange(num_tokens, device=tokens_BT.device)
            positions = start if cache is None else cache.positions(num_tokens)
        rope = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        mask = self._mask(tokens_BT, documents, cache)
        x_BTD = self.embedding(tokens_BT)
        router = []
        for i, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[i]
            if self.gradient_checkpointing and self.training and cache is None:
                x_BTD, stats = checkpoint(block, x_BTD, rope, mask, None, real, use_reentrant=False)
            else:
                x_BTD, stats = block(x_BTD, rope, mask, layer_cache, real)
            if stats is not None:
                router.append(stats)
        return self.final_norm(x_BTD), tuple(router)

    def _mask(self, tokens_BT: Tensor, documents: Tensor | None, cache: KVCache | None) -> AttentionMask | None:
        """One for all layers; `None` where causality says all."""
        num_tokens = tokens_BT.shape[1]
        if cache is not None:
            mask = cache.mask(num_tokens)
            return None if mask is None else mask.keep()
        windowed = self.config.window is not None and self.config.window < num_tokens
        if documents is None and not windowed:
            return None
        window, global_tokens = (self.config.window, self.config.global_tokens) if windowed else (None, 0)
        mask = AttentionMask(
            num_tokens,
            num_tokens,
            tokens_BT.device,
            documents_BS=documents,
            window=window,
            global_tokens=global_tokens,
        )
        # In training on a CPU nothing is ever made of it.
        on_cpu = self.training and tokens_BT.device.type == "cpu"
        tiles = on_cpu and not self.config.attention_dropout
        served = tiles and tiled.serves(num_tokens, num_tokens, self.config.head_dim, mask)
        return mask if served else mask.keep()
