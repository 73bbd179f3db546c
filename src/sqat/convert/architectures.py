"""The stock architectures of `transformers` that can be converted, and where each keeps what conversion changes.

All of them hold one number of query heads and one of key/value heads for the whole model, and an explicit `head_dim`.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sqat.errors import ConfigError

MODEL_TYPES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3")


class Heads(NamedTuple):
    """The head counts of an attention layer, and the width of a head."""

    query: int
    kv: int
    head_dim: int


def require_known(model_type: str) -> None:
    """Raise a ConfigError unless it is one of `MODEL_TYPES`."""
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"model_type is {model_type!r}, but must be one of {', '.join(MODEL_TYPES)}")


def heads_of(config: PreTrainedConfig) -> Heads:
    """The heads of a configuration; `head_dim` is the hidden size's share of a head where it is not set."""
    query = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or query
    return Heads(query, kv, getattr(config, "head_dim", None) or config.hidden_size // query)


def with_heads(config: PreTrainedConfig, heads: Heads) -> PreTrainedConfig:
    """The same configuration with other heads.

    Raises:
        ConfigError: the architecture does not allow them (Llama's query heads must divide the hidden size).
    """
    changed = copy.deepcopy(config)
    changed.num_attention_heads, changed.num_key_value_heads, changed.head_dim = heads
    try:
        changed.validate()
    except StrictDataclassError as error:
        reason = error.__cause__ or error
        raise ConfigError(
            f"query_heads is {heads.query}, which {config.model_type} does not allow: {reason}"
        ) from error
    return changed


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of every layer, with `q_proj`, `k_proj`, `v_proj` and `o_proj`."""
    return [layer.self_attn for layer in model.get_decoder().layers]


def attention_prefix(layer: int) -> str:
    """What the names of a layer's attention tensors begin with."""
    return f"model.layers.{layer}.self_attn."


def window_of(config: PreTrainedConfig, layer: int) -> int | None:
    """The sliding window of a layer in tokens, the present one included; `None` for none."""
    window: Any = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
