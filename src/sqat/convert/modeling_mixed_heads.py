"""Stock models whose layers differ in their numbers of heads. This file is also copied beside checkpoints, where it
runs without sqat: it imports transformers alone.

Everything is the stock architecture's except the attention modules, each built with the head counts of its own layer.
Expert modules are stock ones too, decorated with `@use_experts_implementation`: transformers looks for that very word
in a model's file to see whether its experts' implementation can be chosen.
"""

import copy
from dataclasses import dataclass
from typing import Any

import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, PreTrainedModel

PREFIX = "mixed_heads_"  # of model types: "mixed_heads_llama"
STOCK = {  # model type -> what the names of its classes begin with
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "smollm3": "SmolLM3",
}


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class MixedHeads:
    """What is added to a stock configuration. `num_attention_heads` and `num_key_value_heads` then count for layers
    without a count of their own.

    Raises:
        huggingface_hub.errors.StrictDataclassError: lists of another length than there are layers, or counts that do
            not fit together; the message names the field, its value and what would be right.
    """

    query_heads_per_layer: list[int] | None = None
    kv_heads_per_layer: list[int] | None = None

    def __post_init__(self: Any, **kwargs: Any) -> None:
        """Called by transformers; a dense model's experts are not to be chosen, since its stock class refuses that."""
        if not hasattr(self, "num_experts_per_tok"):
            kwargs.setdefault("experts_implementation", "eager")
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def heads_of_layer(self: Any, layer: int) -> tuple[int, int]:
        """The query and key/value heads of a layer."""
        query, kv = self.query_heads_per_layer, self.kv_heads_per_layer
        return (
            query[layer] if query else self.num_attention_heads,
            kv[layer] if kv else self.num_key_value_heads or self.num_attention_heads,
        )

    def validate_heads_per_layer(self: Any) -> None:
        """Check the counts; transformers calls this when a configuration is built."""
        for name in ("query_heads_per_layer", "kv_heads_per_layer"):
            counts = getattr(self, name)
            if counts and len(counts) != self.num_hidden_layers:
                raise ValueError(
                    f"{name} has {len(counts)} entries, but must have {self.num_hidden_layers}, one a layer"
                )
        for layer in range(self.num_hidden_layers):
            query, kv = self.heads_of_layer(layer)
            if min(query, kv) < 1 or query % kv:
                raise ValueError(
                    f"layer {layer} has {query} query and {kv} key/value heads, but must have a multiple of these, and "
                    "at least 1 of each"
                )


class MixedHeadsModel:
    """Gives each layer of a stock model an attention module with its own head counts."""

    def post_init(self: Any) -> None:
        """Replace the attention modules; transformers calls this when all layers exist, before weights are drawn."""
        for index, layer in enumerate(self.base_model.layers):
            own = copy.copy(self.config)
            own.num_attention_heads, own.num_key_value_heads = self.config.heads_of_layer(index)
            layer.self_attn = type(layer.self_attn)(own, index)
            layer.self_attn.config = self.config  # the one in which back ends are chosen later
        super().post_init()  # type: ignore[misc]


def _define(model_type: str, name: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel], type[PreTrainedModel]]:
    """Make the configuration, base model and language model of an architecture, as public names of this module."""
    ours = f"MixedHeads{name}"
    stock_config = getattr(transformers, f"{name}Config")
    config = strict(_make(f"{ours}Config", (MixedHeads, stock_config), model_type=PREFIX + model_type))
    config.register_for_auto_class()
    models = []
    for kind, auto_class in (("Model", "AutoModel"), ("ForCausalLM", "AutoModelForCausalLM")):
        stock = getattr(transformers, name + kind)
        model = _make(ours + kind, (MixedHeadsModel, stock), config_class=config)
        model.register_for_auto_class(auto_class)
        models.append(model)
    return config, *models


def _make(name: str, bases: tuple[type, ...], **contents: object) -> Any:
    doc = f"`{bases[1].__name__}`, whose layers may differ in their numbers of heads."
    made = type(name, bases, {"__module__": __name__, "__doc__": doc, **contents})
    globals()[name] = made
    return made


CLASSES = {PREFIX + model_type: _define(model_type, name) for model_type, name in STOCK.items()}
