"""The language model: its blocks, the decoder, and its initial weights.

Shape letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from sqat import cost
from sqat.config import ModelConfig
from sqat.errors import ConfigError
from sqat.model.attention import Attention
from sqat.model.cache import KVCache, LayerCache
from sqat.model.dispatch import has_values
from sqat.model.feedforward import FeedForward
from sqat.model.mask import AttentionMask
from sqat.model.moe import MoE, RouterStats
from sqat.model.norm import make_norm
from sqat.model.rope import RotaryTables, rotary_tables

logger = logging.getLogger(__name__)

BYTES_PER_WEIGHT = 4  # float32
STD = 0.02  # of initial weights


class Block(nn.Module):
    """`x + attention(norm1(x))`, then `x + feedforward(norm2(x))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.attention = Attention(
            config.hidden_size,
            config.num_query_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            out_bias=config.attention_out_bias,
            rope_theta=config.rope_theta,
            dropout=config.attention_dropout,
            window=config.window,
            global_tokens=config.global_tokens,
        )
        self.norm2 = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.feedforward = MoE(config) if config.is_moe else FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        rope: RotaryTables,
        mask: AttentionMask | None = None,
        cache: LayerCache | None = None,
        real_BT: Tensor | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """(B, T, D) to (B, T, D), and the router's statistics over the tokens where `real_BT` holds (`None` if the
        layer is dense).
        """
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rope=rope, mask=mask, cache=cache)
        normed = self.norm2(x_BTD)
        moe = isinstance(self.feedforward, MoE)
        update, stats = self.feedforward(normed, real_BT) if moe else (self.feedforward(normed), None)
        return x_BTD + update, stats


class DecoderOutput(NamedTuple):
    """Logits (B, T, V) and, for mixture-of-experts models, one entry of router statistics per layer."""

    logits: Tensor
    router: tuple[RouterStats, ...]


class Decoder(nn.Module):
    """A causal language model, as described by `config`.

    Forward passes leave no state on the module: caches are arguments, router statistics are results. Set
    `gradient_checkpointing` to recompute layers in backward instead of keeping their activations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        drawn = type(torch.empty(0)) is Tensor and torch.get_default_device().type != "meta"  # not in FakeTensorMode
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
        if drawn and self.embedding.weight.device.type != "meta":
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
        """Logits (B, T, V) and router statistics; for the arguments see :meth:`hidden_states`."""
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
        """The residual stream after the final norm, (B, T, D), and the router statistics of each layer (empty if the
        model is dense).

        Args:
            tokens_BT: token ids, (B, T), each in [0, V).
            positions: (T,) or (B, T); by default 0, 1, …, or continuing those in the cache.
            documents: (B, T), document numbers in packed rows: tokens attend only within their document. Not with a
                cache.
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
        if documents is None and positions is None and has_values(tokens_BT):
            self.check_length(num_tokens + (0 if cache is None else cache.length))
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

    def check_length(self, length: int) -> None:
        """Warn, once a process, of sequences that are longer than those in training."""
        if length > self.config.context_length:
            _warn_of_length(self.config.context_length)

    def _mask(self, tokens_BT: Tensor, documents: Tensor | None, cache: KVCache | None) -> AttentionMask | None:
        """One for all layers; `None` where causality says all."""
        num_tokens, window = tokens_BT.shape[1], self.config.window
        if cache is not None:
            return cache.mask(num_tokens)
        long = window is not None and (type(num_tokens) is not int or window < num_tokens)
        if documents is None and not long:
            return None
        limits = (window, self.config.global_tokens) if long else (None, 0)
        return AttentionMask(num_tokens, num_tokens, tokens_BT.device, True, documents, None, *limits)


@contextmanager
def without_values() -> Iterator[None]:
    """Within it, models are built on the device "meta", of shapes alone. No first values are drawn there: to draw on
    that device, torch imports its compiler, which takes seconds.
    """
    with torch.device("meta"), _NoFirstValues():
        yield


class _NoFirstValues(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return function(*args, **kwargs)


@functools.cache
def _warn_of_length(context_length: int) -> None:
    logger.warning(
        "this sequence is longer than the %d tokens (context_length) that the model was trained on: what comes after "
        "them may be poor",
        context_length,
    )


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Draw all initial weights; norms keep their ones.

    Two schemes. "normal": every matrix N(0, 0.02), the two that write to the residual stream scaled by
    1/sqrt(2·layers) (GPT-2), biases zero. "torch": what PyTorch's own layers start from, as the published models did:
    uniform within ±1/sqrt(fan_in), the embedding N(0, 1).

    Every tensor is drawn from a generator of its own, seeded by its name. So, for one seed, models of different head
    counts start equal in every tensor they have in common, and can be compared pair by pair.
    """
    normal, residual_std = decoder.config.init == "normal", STD / (2 * decoder.config.num_layers) ** 0.5
    parameters = dict(decoder.named_parameters())
    for name, parameter in parameters.items():
        if "norm" in name:
            continue
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        matrix = parameters.get(name.replace("bias", "weight"))  # a stack of them in a mixture of experts
        if name.endswith("bias") and (normal or matrix is None):  # no matrix of its own: tied to the embedding
            nn.init.zeros_(parameter)
        elif normal:
            writes_residual = name.endswith(("out_proj.weight", "fc2.weight", "fc2_weight"))
            nn.init.normal_(parameter, std=residual_std if writes_residual else STD, generator=generator)
        elif name == "embedding.weight":
            nn.init.normal_(parameter, generator=generator)
        else:
            assert matrix is not None
            bound = matrix.shape[-1] ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)


def require_memory(config: ModelConfig) -> None:
    """Raise a ConfigError where the weights alone are larger than the machine's memory: an allocator may grant a
    petabyte, and the process is killed when it is touched.
    """
    weights, memory = cost.parameters(config).total, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights * BYTES_PER_WEIGHT > memory:
        raise ConfigError(
            f"ModelConfig asks for {weights:,} parameters, {weights * BYTES_PER_WEIGHT / 1e9:,.3g} GB of weights; but "
            f"this machine has {memory / 1e9:,.3g} GB of memory"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; afterwards, also after an error, it is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
