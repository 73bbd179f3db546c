"""What a conversion will change, from the configuration alone: shapes, parameters, operations, cache."""

from __future__ import annotations

import math
import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from sqat.convert.architectures import (
    Heads,
    attention_names,
    heads_by_layer,
    heads_of,
    require_convertible,
    require_known,
    skeleton,
    window_of,
    with_heads,
    with_mixed_heads,
)
from sqat.cost import visible_keys
from sqat.errors import ConfigError
from sqat.model_card import StockModel

CHOICES = {
    "method": ("fit", "mean", "select", "cluster"),
    "score": ("activation", "norm"),
    "to": ("stock", "transformers"),
}
VISITED = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")  # names of the experts that a token visits
DEFAULT_CONTEXT = 1024  # tokens, where costs depend on the length; at most the model's own

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Costs:
    """What a model costs. A multiply-add is two operations."""

    query_heads: int
    kv_heads: int
    parameters: int
    active_parameters: int  # without the experts that a token does not visit
    attention_parameters: int
    flops_per_token: int  # of a forward pass, averaged over a causal sequence of `context_length` tokens
    attention_flops_per_token: int  # of these, the scores and the weighted sum
    kv_bytes_per_token: int  # 16-bit values, before a window is full


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion, checked and costed; made by :func:`plan_conversion`."""

    config: PreTrainedConfig  # the model's
    new_config: PreTrainedConfig  # the converted model's: same architecture, explicit head_dim
    method: str
    score: str
    layers: tuple[int, int]  # first and last layer that lose heads, from 0
    to: str  # "stock" or "transformers"
    heads: tuple[Heads, ...]  # the converted model's, for each layer
    context_length: int
    before: Costs
    after: Costs
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # before and after, of the tensors that change

    @property
    def needs_calibration(self) -> bool:
        """Whether heads are chosen by what they do on text, which :func:`sqat.convert.convert` then needs."""
        return self.method == "fit" or (self.method != "mean" and self.score == "activation")

    @property
    def calibration_reason(self) -> str:
        """Why there must be calibration text, for error messages."""
        if self.method == "fit":
            return 'method "fit" needs text (--calibrate DATA[:n]); method "mean" does without'
        return (
            f'method "{self.method}" by score "activation" needs text (--calibrate DATA[:n]); score "norm" does without'
        )

    def summary(self) -> str:
        """A table for the terminal: costs before and after."""
        rows = {
            "query heads": "query_heads",
            "key/value heads": "kv_heads",
            "parameters": "parameters",
            "of these in attention": "attention_parameters",
            f"operations a token at {self.context_length:,} tokens": "flops_per_token",
            "of these scores and sums": "attention_flops_per_token",
            "cache bytes a token (16-bit)": "kv_bytes_per_token",
        }
        pairs = [(name, getattr(self.before, field), getattr(self.after, field)) for name, field in rows.items()]
        return "\n".join(f"{name:<36} {old:>16,} -> {new:>16,}  ({new / old:.0%})" for name, old, new in pairs)


def plan_conversion(
    config: PreTrainedConfig,
    *,
    query_heads: int,
    kv_heads: int | None = None,
    method: str = "fit",
    score: str = "activation",
    layers: str | tuple[int, int] | None = None,
    to: str = "stock",
    context_length: int | None = None,
) -> ConversionPlan:
    """Plan a conversion without loading weights.

    Args:
        config: of a causal language model with query, key, value and output projections; docs/converting.md names
            the architectures that have been tried.
        query_heads: how many the model shall have.
        kv_heads: how many key/value heads; by default the most of the present ones that also divide `query_heads`.
        method: "fit" keeps the heads that explain each layer's output best on calibration text, and fits the output
            projections to them (:mod:`sqat.convert.fit`); "mean" merges neighbours, "select" keeps the best by `score`,
            "cluster" merges heads that are alike. All stay within the query heads that share a key/value head in the
            result.
        score: of "select" and "cluster": "activation" (what heads do on calibration text) or "norm" (their weights
            alone).
        layers: "a-b" or (a, b), first and last layer to lose heads, from 0; default: all. Fewer need "transformers".
        to: "stock", a model of the same architecture; or "transformers", one with its own modelling code
            (:mod:`sqat.convert.modeling_mixed_heads`), whose layers may differ in their heads.
        context_length: tokens of a sequence, for the operations; default: the model's own, at most 1,024.

    Raises:
        ConfigError: an architecture whose heads cannot be taken, with the reason; an unknown method, score or target;
            heads that do not fit; some layers alone for a stock architecture.
    """
    require_known(config.model_type)
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            "quantization_config is set, but weights must be plain: take a checkpoint that is not quantised"
        )
    if to == "native":
        warnings.warn('to="native" is now to="transformers"', FutureWarning, stacklevel=2)
        to = "transformers"
    for name, value in (("method", method), ("score", score), ("to", to)):
        if value not in CHOICES[name]:
            raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(CHOICES[name])}")
    if context_length is not None and context_length < 1:
        raise ConfigError(f"context_length is {context_length}, but must be at least 1")
    old, count = heads_of(config), config.num_hidden_layers
    new = _new_heads(old, query_heads, kv_heads)
    first, last = _layer_range(layers, count)
    model = skeleton(config)
    present = heads_by_layer(config, model)
    by_layer = [new if first <= layer <= last and own.query else own for layer, own in enumerate(present)]
    if to == "transformers":
        new_config = with_mixed_heads(config, by_layer)
    elif (first, last) == (0, count - 1):
        new_config = with_heads(config, new)
    else:
        raise ConfigError(
            f'layers is {first}-{last}, but must be 0-{count - 1} for to "stock": a {config.model_type} checkpoint '
            'holds one number of heads for all layers; to "transformers" (--to transformers) holds one for each'
        )
    length = context_length or context_of(config)
    result = skeleton(new_config)
    require_convertible(model, result, present, by_layer)
    shapes, new_shapes = (_shapes(each) for each in (model, result))
    return ConversionPlan(
        config=config,
        new_config=new_config,
        method=method,
        score=score,
        layers=(first, last),
        to=to,
        heads=tuple(by_layer),
        context_length=length,
        before=_costs(model, present, length),
        after=_costs(result, by_layer, length),
        shapes={name: (shape, new_shapes[name]) for name, shape in shapes.items() if new_shapes[name] != shape},
    )


def costs_of(config: PreTrainedConfig, context_length: int | None = None) -> Costs:
    """What a model of an architecture that can be converted, or has been, costs as it is, without loading weights;
    arguments and errors as :func:`plan_conversion`. Where layers differ, the head counts are those of the layers with
    the fewest.
    """
    require_known(config.model_type, mixed=True)
    model = skeleton(config)
    return _costs(model, heads_by_layer(config, model), context_length or context_of(config))


def described(config: PreTrainedConfig, context_length: int | None = None) -> StockModel:
    """What a model card tells of a model; arguments and errors as :func:`costs_of`."""
    length = context_length or context_of(config)
    return StockModel(config, heads_by_layer(config), asdict(costs_of(config, length)), length)


def context_of(config: PreTrainedConfig) -> int:
    """Tokens of the sequence that costs are averaged over, by default: the model's own context, at most 1,024."""
    return min(getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _new_heads(old: Heads, query: int, kv: int | None) -> Heads:
    if not 1 <= query <= old.query:
        raise ConfigError(f"query_heads is {query}, but must be 1 to {old.query}, the model's own number")
    kv = math.gcd(old.kv, query) if kv is None else kv
    if kv < 1 or old.kv % kv:
        divisors = ", ".join(str(n) for n in range(1, old.kv + 1) if old.kv % n == 0)
        raise ConfigError(f"kv_heads is {kv}, but must divide the model's {old.kv} key/value heads: one of {divisors}")
    if query % kv:
        raise ConfigError(f"query_heads is {query}, but must be a multiple of kv_heads ({kv})")
    return Heads(query, kv, old.head_dim)


def _layer_range(layers: str | tuple[int, int] | None, count: int) -> tuple[int, int]:
    right = f"must be a-b with 0 <= a <= b <= {count - 1}, as 0-{count - 1} for all"
    if layers is None:
        return 0, count - 1
    if isinstance(layers, str):
        match = re.fullmatch(r"(\d+)-(\d+)", layers.strip())
        if match is None:
            raise ConfigError(f"layers is {layers!r}, but {right}")
        layers = int(match[1]), int(match[2])
    try:
        first, last = (operator.index(layer) for layer in layers)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"layers is {layers!r}, but {right}; or (a, b)") from error
    if not 0 <= first <= last < count:
        raise ConfigError(f"layers is {first}-{last}, but {right}")
    return first, last


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, tied ones once."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _costs(model: Any, by_layer: Sequence[Heads], length: int) -> Costs:
    config, shapes = model.config, _shapes(model)
    active = {name: math.prod(shape) for name, shape in shapes.items()}  # weights that one token meets
    for name, shape in shapes.items():
        if ".experts." in name:  # stacked
            active[name] = math.prod(shape[1:]) * next((getattr(config, n) for n in VISITED if hasattr(config, n)), 1)
    # Matrices of layers, each used once a token. The head, tied or not, is counted apart.
    products = sum(active[name] for name, shape in shapes.items() if ".layers." in name and len(shape) > 1)
    keys = [visible_keys(length, window_of(config, layer)) / length for layer in range(len(by_layer))]
    scores = round(sum(4 * h.query * h.head_dim * seen for h, seen in zip(by_layer, keys, strict=True)))
    attention, fewest = (
        tuple(f"{name}." for name in attention_names(model) if name),
        min(h for h in by_layer if h.query),
    )
    return Costs(
        query_heads=fewest.query,
        kv_heads=fewest.kv,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        active_parameters=sum(active.values()),
        attention_parameters=sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(attention)),
        flops_per_token=2 * (products + config.vocab_size * config.hidden_size) + scores,
        attention_flops_per_token=scores,
        kv_bytes_per_token=sum(2 * 2 * h.kv * h.head_dim for h in by_layer),
    )
