"""The `transformers` architectures that can be converted, and where each keeps what conversion changes.

All of them have one number of query heads and one of key/value heads for the whole model, and an explicit `head_dim`;
:mod:`sqat.convert.modeling_mixed_heads` has the same architectures with head counts for each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sqat.convert import modeling_mixed_heads
from sqat.convert.modeling_mixed_heads import PREFIX
from sqat.errors import ConfigError

MODEL_TYPES = tuple(modeling_mixed_heads.STOCK)
_OF_THE_CLASS = ("model_type", "architectures", "transformers_version", "auto_map")  # fields of a configuration

for _config, _base, _causal in modeling_mixed_heads.CLASSES.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _base, exist_ok=True)
    AutoModelForCausalLM.register(_config, _causal, exist_ok=True)


class Heads(NamedTuple):
    """The head counts of an attention layer, and the width of a head."""

    query: int
    kv: int
    head_dim: int


def require_known(model_type: str, *, mixed: bool = False) -> None:
    """Raise a ConfigError unless the architecture is one of `MODEL_TYPES` or, with `mixed`, its twin with head counts
    for each layer.
    """
    if model_type not in MODEL_TYPES and not (mixed and model_type in modeling_mixed_heads.CLASSES):
        raise ConfigError(f"model_type is {model_type!r}, but must be one of {', '.join(MODEL_TYPES)}")


def heads_of(config: PreTrainedConfig) -> Heads:
    """The heads of a configuration; `head_dim` is the hidden size over the number of heads unless it is set."""
    query = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or query
    return Heads(query, kv, getattr(config, "head_dim", None) or config.hidden_size // query)


def heads_by_layer(config: PreTrainedConfig) -> list[Heads]:
    """The heads of each layer; they differ only in the models of `modeling_mixed_heads`."""
    every = heads_of(config)
    own: Any = getattr(config, "heads_of_layer", lambda layer: (every.query, every.kv))
    counts = (own(layer) for layer in range(config.num_hidden_layers))
    return [Heads(query, kv, every.head_dim) for query, kv in counts]


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
            f'query_heads is {heads.query}, which {config.model_type} does not allow (to "transformers" does): {reason}'
        ) from error
    return changed


def with_mixed_heads(config: PreTrainedConfig, layers: Sequence[Heads]) -> PreTrainedConfig:
    """The same configuration with heads for each layer, for the classes in `modeling_mixed_heads`."""
    mixed, base, causal = modeling_mixed_heads.CLASSES[PREFIX + config.model_type]
    values = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_CLASS}
    values |= {
        "head_dim": heads_of(config).head_dim,
        "query_heads_per_layer": [heads.query for heads in layers],
        "kv_heads_per_layer": [heads.kv for heads in layers],
    }
    changed = mixed(**values)
    file = modeling_mixed_heads.__name__.rpartition(".")[2]
    classes = {"AutoConfig": mixed, "AutoModel": base, "AutoModelForCausalLM": causal}
    changed.auto_map = {auto: f"{file}.{own.__name__}" for auto, own in classes.items()}
    return changed


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of every layer, with `q_proj`, `k_proj`, `v_proj` and `o_proj`."""
    return [layer.self_attn for layer in model.get_decoder().layers]


def window_of(config: PreTrainedConfig, layer: int) -> int | None:
    """The sliding window of a layer in tokens, the current one included; `None` without one."""
    window: Any = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
