"""The description of a model: a frozen dataclass, validated once, when it is built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from sqat.config_fields import (
    Config,
    require,
    require_at_most,
    require_choice,
    require_finite,
    require_fraction,
    require_positive,
)

ACTIVATIONS = ("silu", "swish", "gelu", "relu", "sigmoid", "linear")
NORMS = ("rmsnorm", "layernorm")
INITS = ("normal", "torch")

# Far above any model there is. A configuration may come with a checkpoint from anywhere: beyond these, building so
# much as a list of its layers would take minutes or all memory.
CEILINGS = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "num_layers": 1 << 12,
    "num_query_heads": 1 << 14,
    "num_kv_heads": 1 << 14,
    "head_dim": 1 << 16,
    "intermediate_size": 1 << 22,
    "context_length": 1 << 24,
    "num_experts": 1 << 14,
    "global_tokens": 1 << 24,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Everything that determines a :class:`sqat.model.Decoder` but its weights.

    The attention variant is three numbers: ``num_query_heads`` (Hq), ``num_kv_heads`` (Hkv) and ``head_dim``. The
    number of heads that full attention of the same width would have is ``num_heads`` = H = ``hidden_size / head_dim``;
    Sparse Query Attention (arXiv 2510.01817) is Hq < H, and Hq < Hkv its reverse form, where every query head serves
    several key/value heads. :func:`sqat.variants.head_counts` turns a variant's name into the numbers.

    Raises:
        ConfigError: a field has an unusable value; the message names it and says what would be right.
    """

    vocab_size: int
    hidden_size: int  # D, the residual stream's width
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # hidden width of the feed-forward, of one expert if there are experts
    context_length: int  # tokens per training row; rotary tables grow beyond it on demand
    num_experts: int = 0  # 0: one dense feed-forward per layer
    experts_per_token: int = 2  # ignored where num_experts is 0
    activation: str = "silu"
    gated: bool = True
    norm: str = "rmsnorm"
    norm_eps: float | None = 1e-6  # None: torch's own default (RMSNorm: machine epsilon of the input; LayerNorm: 1e-5)
    final_norm: str | None = (
        "rmsnorm"  # the norm between the last layer and the head; null for none, as the card's models
    )
    tie_embeddings: bool = True  # the head shares the embedding's matrix
    qkv_bias: bool = False
    attention_out_bias: bool = False
    feedforward_bias: bool = False
    head_bias: bool = False
    rope_theta: float = 10000.0
    attention_dropout: float = 0.0
    feedforward_dropout: float = 0.0  # between the two feed-forward layers
    init: str = "normal"  # or "torch", PyTorch's defaults, as the card's models; see sqat.model.decoder
    window: int | None = None  # how many positions a token sees, itself the last of them; null for all before it
    global_tokens: int = 0  # a document's first so many positions are seen by all after them; needs a window

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_query_heads", "num_kv_heads", "head_dim"):
            require_positive(self, name)
        require_positive(self, "intermediate_size")
        require(self.context_length >= 2, self, "context_length", "at least 2 (one token and the one after it)")
        for name, most in CEILINGS.items():
            require_at_most(self, name, most)
        require(self.head_dim % 2 == 0, self, "head_dim", "even, since rotary embedding turns pairs")
        query_heads, kv_heads = self.num_query_heads, self.num_kv_heads
        right = f"a divisor of num_query_heads ({query_heads}): {_divisors(query_heads)}; or a multiple of it"
        require(heads_fit(query_heads, kv_heads), self, "num_kv_heads", right)
        require(self.window is None or self.window >= 1, self, "window", "at least 1, or null for no window")
        require(self.global_tokens >= 0, self, "global_tokens", "0 (none) or more")
        if self.window is None:
            right = "0 where window is null, since every token then sees all before it"
            require(self.global_tokens == 0, self, "global_tokens", right)
        require(self.num_experts >= 0, self, "num_experts", "0 (dense) or more")
        if self.num_experts:
            right = f"between 1 and num_experts ({self.num_experts})"
            require(1 <= self.experts_per_token <= self.num_experts, self, "experts_per_token", right)
        require_choice(self, "activation", ACTIVATIONS)
        require_choice(self, "norm", NORMS)
        require(
            self.final_norm is None or self.final_norm in NORMS,
            self,
            "final_norm",
            f"null or one of {', '.join(NORMS)}",
        )
        require_choice(self, "init", INITS)
        require(self.norm_eps is None or self.norm_eps > 0, self, "norm_eps", "positive, or null for torch's default")
        require(self.rope_theta > 0, self, "rope_theta", "positive, such as 10000")
        require_finite(self, "rope_theta")
        if self.norm_eps is not None:
            require_finite(self, "norm_eps")
        require_fraction(self, "attention_dropout")
        require_fraction(self, "feedforward_dropout")

    @property
    def num_heads(self) -> int:
        """H: how many heads full attention of this width would have (at least Hq and Hkv)."""
        return max(self.hidden_size // self.head_dim, self.num_score_heads)

    @property
    def num_score_heads(self) -> int:
        """How many heads scores are computed for, and the output projection reads: Hq, or Hkv where that is more."""
        return max(self.num_query_heads, self.num_kv_heads)

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


def heads_fit(query_heads: int, kv_heads: int) -> bool:
    """Whether every query head reads one key/value head, or every key/value head serves one query head."""
    return query_heads % kv_heads == 0 or kv_heads % query_heads == 0


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
