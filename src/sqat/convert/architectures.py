"""The `transformers` architectures that can be converted, and where each keeps what conversion changes.

There is no list of them. A model can be given other heads if each of its layers has one attention module with separate
query, key and value projections (or `qkv_proj`) and an output projection, and if nothing else in the model changes its
shape with the number of heads. :mod:`sqat.convert.modeling_mixed_heads` has some of these architectures with head
counts for each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sqat.convert import modeling_mixed_heads
from sqat.convert.modeling_mixed_heads import PREFIX
from sqat.errors import ConfigError

CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model types of causal language models
MIXED_TYPES = tuple(modeling_mixed_heads.STOCK)  # whose layers may differ in their heads
QUERIES = ("q_proj", "gate_proj", "g_proj", "sinks")  # tensors of an attention module with rows for each query head,
KEYS_AND_VALUES = ("k_proj", "v_proj")  # for each key/value head,
FUSED = "qkv_proj"  # for both, or
OUTPUTS = ("o_proj", "out_proj", "dense")  # with columns for each query head
REFUSED = {
    "bitnet": "its weights are ternary",
    "diffllama": "its heads work in pairs",
    "phi4_multimodal": "it is a model of several",
    "zamba": "its layers share attention",
    "zamba2": "its layers share attention",
}  # although every shape fits
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
    """Raise a ConfigError unless the architecture is a causal language model of transformers whose heads can be taken
    or, with `mixed`, the twin of one with head counts for each layer.
    """
    if model_type in REFUSED:
        raise ConfigError(f"model_type is {model_type!r}, whose heads cannot be taken: {REFUSED[model_type]}")
    if model_type not in CAUSAL and not (mixed and model_type in modeling_mixed_heads.CLASSES):
        raise ConfigError(
            f"model_type is {model_type!r}, but must be that of a causal language model in transformers, such as "
            f"{', '.join(MIXED_TYPES)}"
        )


def heads_of(config: PreTrainedConfig) -> Heads:
    """The heads of a configuration; `head_dim` is the hidden size over the number of heads unless it is set.

    Raises:
        ConfigError: it has no number of heads, or not one for the whole model.
    """
    try:
        query = config.num_attention_heads
        kv = getattr(config, "num_key_value_heads", None) or query
        return Heads(query, kv, getattr(config, "head_dim", None) or config.hidden_size // query)
    except Exception as error:  # configurations of several models or head counts raise errors of their own
        raise ConfigError(f"{config.model_type} has no one number of heads for the whole model: {error}") from error


def heads_by_layer(config: PreTrainedConfig, model: PreTrainedModel | None = None) -> list[Heads]:
    """The heads of each layer; they differ only in the models of `modeling_mixed_heads`. Layers of `model`, which may
    be on the meta device, that have no attention have none.
    """
    every = heads_of(config)
    own: Any = getattr(config, "heads_of_layer", lambda layer: (every.query, every.kv))
    counts = [Heads(query, kv, every.head_dim) for query, kv in map(own, range(config.num_hidden_layers))]
    if model is None:
        return counts
    found = attention_layers(model)
    if len(found) != len(counts):
        raise ConfigError(f"{config.model_type} is a model of several, but must be a language model alone")
    return [Heads(0, 0, every.head_dim) if one is None else n for n, one in zip(counts, found, strict=True)]


def with_heads(config: PreTrainedConfig, heads: Heads) -> PreTrainedConfig:
    """The same configuration with other heads.

    Raises:
        ConfigError: the architecture does not allow them (Llama's query heads must divide the hidden size).
    """
    changed = copy.deepcopy(config)
    try:
        changed.num_attention_heads, changed.num_key_value_heads, changed.head_dim = heads
        changed.validate()
    except AttributeError as error:
        raise ConfigError(f"{config.model_type} has no head_dim apart from its number of heads: {error}") from error
    except StrictDataclassError as error:
        reason = error.__cause__ or error
        raise ConfigError(
            f'query_heads is {heads.query}, which {config.model_type} does not allow (to "transformers" does): {reason}'
        ) from error
    return changed


def with_mixed_heads(config: PreTrainedConfig, layers: Sequence[Heads]) -> PreTrainedConfig:
    """The same configuration with heads for each layer, for the classes in `modeling_mixed_heads`.

    Raises:
        ConfigError: there is no such class for the architecture.
    """
    if config.model_type not in MIXED_TYPES:
        raise ConfigError(
            f'model_type is {config.model_type!r}, but must be one of {", ".join(MIXED_TYPES)} for to "transformers"'
        )
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


def skeleton(config: PreTrainedConfig) -> Any:
    """The model of a configuration on the meta device: shapes without values.

    Raises:
        ConfigError: the configuration does not make a model.
    """
    try:
        with torch.device("meta"), no_init_weights():
            model: Any = AutoModelForCausalLM.from_config(config)
            model.tie_weights()
            return model
    except Exception as error:  # its modules raise whatever a value that does not fit leads to
        raise ConfigError(f"no {config.model_type} can be built of the configuration: {error}"[:500]) from error


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that the residual stream goes through. Raises a ConfigError if they are not found."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"{model.config.model_type} has no decoder with `layers`, but must for its heads to be taken")
    return layers


def attention_layers(model: PreTrainedModel) -> list[Any]:
    """The attention module of every layer, `None` for a layer without one (state space, convolution).

    Raises:
        ConfigError: no layer has one, or a layer has several.
    """
    result: list[Any] = []
    for layer in decoder_layers(model):
        found = [module for module in layer.modules() if _is_attention(module)]
        if len(found) > 1:
            raise ConfigError(f"{model.config.model_type} has several attentions in a layer, but must have one")
        result.append(found[0] if found else None)
    if not any(result):
        raise ConfigError(
            f"{model.config.model_type} has no attention with q_proj, k_proj and v_proj (or qkv_proj) and o_proj, "
            "whose heads could be taken"
        )
    return result


def _is_attention(module: nn.Module) -> bool:
    linear = {name for name, child in module.named_children() if isinstance(child, nn.Linear)}
    return ({"q_proj", *KEYS_AND_VALUES} <= linear or FUSED in linear) and bool(linear & {*OUTPUTS})


def attention_names(model: PreTrainedModel) -> list[str | None]:
    """The name of each module of :func:`attention_layers` in the model, as "model.layers.3.self_attn"."""
    names = {id(module): name for name, module in model.named_modules()}
    return [None if attention is None else names[id(attention)] for attention in attention_layers(model)]


def output_name(names: Iterable[str]) -> str:
    """The name of the output projection among those of an attention module's tensors or children."""
    found = {name.partition(".")[0] for name in names}
    return next(name for name in OUTPUTS if name in found)


def output_projection(attention: Any) -> Any:
    """The linear layer from weighted values to what an attention module adds to the residual stream."""
    return getattr(attention, output_name(name for name, _ in attention.named_children()))


def require_convertible(
    before: PreTrainedModel, after: PreTrainedModel, layers: Sequence[Heads], new: Sequence[Heads]
) -> None:
    """Raise a ConfigError unless the two models, of the same architecture with heads `layers` and `new`, differ in the
    query, key, value and output projections of attention alone, and in these as the numbers of heads say.
    """
    found = {name: tuple(tensor.shape) for name, tensor in after.state_dict().items()}
    expected = {name: tuple(tensor.shape) for name, tensor in before.state_dict().items()}
    for name, old_heads, heads in zip(attention_names(before), layers, new, strict=True):
        if name is not None:
            for key, shape in [*expected.items()]:
                if key.startswith(f"{name}."):
                    expected[key] = _shape(key.removeprefix(f"{name}.").split(".")[0], shape, old_heads, heads)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ConfigError(
                f"{before.config.model_type} cannot be given other head counts: with them {name} would be "
                f"{found.get(name)}, but must be {expected.get(name)}"
            )


def _shape(name: str, shape: tuple[int, ...], old: Heads, new: Heads) -> tuple[int, ...]:
    if name in QUERIES:
        return shape[0] * new.query // old.query, *shape[1:]
    if name in KEYS_AND_VALUES:
        return shape[0] * new.kv // old.kv, *shape[1:]
    if name == FUSED:
        return shape[0] * (new.query + 2 * new.kv) // (old.query + 2 * old.kv), *shape[1:]
    if name in OUTPUTS and len(shape) == 2:  # as wide as the heads, and not as the residual stream
        return (shape[0], new.query * new.head_dim) if shape[1] == old.query * old.head_dim else ()
    return shape


def unfused(tensors: Mapping[str, Tensor], heads: Heads) -> dict[str, Tensor]:
    """The tensors of an attention module with `qkv_proj`, if it has that, cut into its three parts."""
    result, rows = dict(tensors), [heads.query * heads.head_dim, *2 * [heads.kv * heads.head_dim]]
    for kind in ("weight", "bias"):
        if (whole := result.pop(f"{FUSED}.{kind}", None)) is not None:
            parts = zip(("q_proj", *KEYS_AND_VALUES), whole.split(rows), strict=True)
            result |= {f"{name}.{kind}": part for name, part in parts}
    return result


def fused(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """:func:`unfused` taken back where `like`, a module's tensors, has `qkv_proj`."""
    result = dict(tensors)
    for kind in ("weight", "bias"):
        if f"{FUSED}.{kind}" in like:
            result[f"{FUSED}.{kind}"] = torch.cat([result.pop(f"{n}.{kind}") for n in ("q_proj", *KEYS_AND_VALUES)])
    return result


def window_of(config: PreTrainedConfig, layer: int) -> int | None:
    """The sliding window of a layer in tokens, the current one included; `None` without one."""
    window: Any = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return window if types is None or types[layer] == "sliding_attention" else None
