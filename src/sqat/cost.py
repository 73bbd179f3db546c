"""The cost of a configuration, without building the model: parameters, floating-point operations, cache bytes.

A multiply-add counts as two operations. The cost of attention is proportional to the number of *query* heads (arXiv
2510.01817, section 3.2), which is the point of Sparse Query Attention; in reverse SQA, to that of key/value heads.
"""

from typing import NamedTuple

from sqat.config import ModelConfig


class Parameters(NamedTuple):
    """Parameter counts. `active` excludes the experts that a token is not routed to."""

    total: int
    active: int
    embedding: int
    attention: int
    feedforward: int


def parameters(config: ModelConfig) -> Parameters:
    """Exact parameter counts of the model that a configuration describes; tied matrices count once."""
    d, layers = config.hidden_size, config.num_layers
    query, kv = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = d * (query + 2 * kv) + max(query, kv) * d
    attention += config.qkv_bias * (query + 2 * kv) + config.attention_out_bias * d
    expert = _feedforward_parameters(config)
    experts = max(config.num_experts, 1)
    visited = config.experts_per_token if config.is_moe else 1
    router = config.num_experts * d
    norm, final_norm = (d * {None: 0, "rmsnorm": 1, "layernorm": 2}[kind] for kind in (config.norm, config.final_norm))
    embedding = config.vocab_size * d
    head = config.head_bias * config.vocab_size + (0 if config.tie_embeddings else embedding)
    rest = embedding + head + final_norm + layers * (2 * norm + attention + router)
    return Parameters(
        total=rest + layers * experts * expert,
        active=rest + layers * visited * expert,
        embedding=embedding + head,
        attention=layers * attention,
        feedforward=layers * (router + experts * expert),
    )


def _feedforward_parameters(config: ModelConfig) -> int:
    inner = config.intermediate_size * (2 if config.gated else 1)
    weights = config.hidden_size * inner + config.intermediate_size * config.hidden_size
    return weights + config.feedforward_bias * (inner + config.hidden_size)


class Flops(NamedTuple):
    """Floating-point operations of one token's forward pass, by part of the model."""

    projections: int  # q, k, v and output projections
    attention: int  # scores and weighted sum
    feedforward: int  # the chosen experts and the router
    head: int

    @property
    def total(self) -> int:
        return sum(self)


def flops_per_token(config: ModelConfig, context_length: int | None = None) -> Flops:
    """Forward operations per token, averaged over a causal sequence of `context_length` tokens (by default the model's)
    and rounded.

    A training step costs three times as much (backward is twice forward).
    """
    length = config.context_length if context_length is None else context_length
    d, layers = config.hidden_size, config.num_layers
    query, kv = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size * (3 if config.gated else 2)
    visited = config.experts_per_token if config.is_moe else 1
    keys = visible_keys(length, config.window, config.global_tokens)
    return Flops(
        projections=layers * 2 * d * (query + 2 * kv + max(query, kv)),
        attention=round(layers * 4 * max(query, kv) * keys / length),  # 4·C per head and key
        feedforward=layers * 2 * (visited * d * inner + config.num_experts * d),
        head=2 * d * config.vocab_size,
    )


def visible_keys(length: int, window: int | None = None, global_tokens: int = 0) -> int:
    """The number of (query, key) pairs in a causal sequence; without a window, `length` (`length` + 1) / 2."""
    if window is None:
        return length * (length + 1) // 2
    beyond = max(length - window, 0)  # tokens whose window no longer reaches the global tokens
    return _sum_up_to(length, window) + _sum_up_to(beyond, global_tokens)


def _sum_up_to(count: int, most: int) -> int:
    """min(1, most) + min(2, most) + … + min(count, most)."""
    rising = min(count, most)
    return rising * (rising + 1) // 2 + (count - rising) * most


def kv_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes that the key/value cache grows by per token, by default in 16-bit values, until a window is full."""
    return config.num_layers * 2 * config.num_kv_heads * config.head_dim * bytes_per_value


def kv_bytes(config: ModelConfig, length: int, bytes_per_value: int = 2) -> int:
    """Bytes of the key/value cache for `length` tokens; bounded if the model has a window."""
    kept = length if config.window is None else min(length, config.window + config.global_tokens)
    return kept * kv_bytes_per_token(config, bytes_per_value)


def attention_speedup(config: ModelConfig) -> float:
    """H/Hq (H/Hkv in reverse SQA): the factor by which attention is cheaper than full attention of the same width, not
    counting what a window saves.
    """
    return config.num_heads / config.num_score_heads
