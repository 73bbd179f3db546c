"""Configurations are frozen dataclasses: read strictly from plain data, validated once, when they are built.

:class:`Config` reads and writes all of them, the `require` functions validate them, and :class:`ModelConfig`
describes a model.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqat.errors import ConfigError
from sqat.untrusted import shown

MAX_INTEGER = (1 << 63) - 1  # the largest number that torch and Arrow take

ACTIVATIONS = ("silu", "swish", "gelu", "relu", "sigmoid", "linear")
NORMS = ("rmsnorm", "layernorm")
INITS = ("normal", "torch")

# Far above any real model. A config.json may come from anywhere, and must not make us allocate without end.
CEILINGS = {
    **dict.fromkeys(("vocab_size", "context_length", "global_tokens"), 1 << 24),
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim"), 1 << 18),
    **dict.fromkeys(("num_layers", "num_query_heads", "num_kv_heads", "num_experts"), 1 << 12),
}


class Config:
    """Mixin for frozen dataclasses of plain fields: conversion from and to dictionaries.

    A subclass declares its fields with types and defaults, and checks their values in `__post_init__` with
    :func:`require` and its short forms.
    """

    def __new__(cls, *_: Any, **values: Any) -> Self:
        for name, value in values.items():  # a dataclass checks no types: text is the wrong one that people give
            kind = _types_of(cls).get(name, Any)  # type: ignore[arg-type]
            if isinstance(value, str) and convert(value, kind, f"{cls.__name__}.{name}") != value:
                raise ConfigError(f"{cls.__name__}.{name} is {value!r}, but must not be text")
        return super().__new__(cls)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from plain data, such as parsed YAML or JSON.

        Raises:
            ConfigError: an unknown or missing field, or a value of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__}: expected a mapping of fields, found {shown(values)}")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in fields:
                close = difflib.get_close_matches(str(name)[:100], fields, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(fields)}"
                raise ConfigError(f"{cls.__name__}: unknown field {shown(name)}; {hint}")
        for name, field in fields.items():
            no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if no_default and name not in values:
                raise ConfigError(f"{cls.__name__}: field {name!r} is missing")
        types_of = _types_of(cls)  # type: ignore[arg-type]
        return cls(**{name: convert(value, types_of[name], f"{cls.__name__}.{name}") for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data; `from_dict` builds an equal configuration from it."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    """The types of the fields; cached, because Python compiles every annotation anew."""
    return typing.get_type_hints(cls)


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as type `kind`: int, float, bool, str, None, a union or tuple of these, a dict, or a Config.

    Lenient where YAML and command lines are: "2e-3" is a float, "null" is None, 3.0 is an int.

    Raises:
        ConfigError: naming `where`, the value and the right type.
    """
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    empty = value is None or (isinstance(value, str) and value.lower() in ("null", "none"))
    if empty and types.NoneType in options:
        return None
    for option in options:
        if option is Any:
            return value
        if typing.get_origin(option) is dict and isinstance(value, Mapping):
            return dict(value)
        if isinstance(option, type) and issubclass(option, Config):
            return value if isinstance(value, option) else option.from_dict(value)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(convert(item, typing.get_args(option)[0], where) for item in value)
        converted = _convert_scalar(value, option)
        if converted is not None:
            if isinstance(converted, int) and abs(converted) > MAX_INTEGER:
                right = f"at most {MAX_INTEGER:,}" if converted > 0 else f"at least {-MAX_INTEGER:,}"
                raise ConfigError(f"{where} is {shown(value)}, but must be {right}")
            return converted
    right = " or ".join(_WORDS.get(option, getattr(option, "__name__", str(option))) for option in options)
    raise ConfigError(f"{where} is {shown(value)}, but must be {right}")


_WORDS: dict[Any, str] = {
    tuple[str, ...]: "a tuple of texts",
    float: "a finite number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


def _convert_scalar(value: Any, kind: Any) -> Any:
    """`value` as a bool, str, int or float; None if it is not one."""
    if kind is bool and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    if kind in (bool, str):
        return value if isinstance(value, kind) else None
    if kind not in (int, float) or isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)  # YAML 1.1 reads "2e-3" as a string
        exact = value if isinstance(value, int) else int(number)
    except (ValueError, OverflowError):  # no number, NaN or infinite
        return None
    if kind is int:
        return exact if isinstance(value, int) or exact == number else None
    return number


def require(condition: bool, config: object, field: str, right: str) -> None:
    """Unless `condition` holds, raise a ConfigError that names the field, its value and what would be right."""
    if not condition:
        raise ConfigError(f"{type(config).__name__}.{field} is {shown(getattr(config, field))}, but must be {right}")


def require_positive(config: object, field: str) -> None:
    """Raise a ConfigError unless the field is at least 1."""
    require(getattr(config, field) >= 1, config, field, "at least 1")


def require_choice(config: object, field: str, choices: Sequence[str | None]) -> None:
    """Raise a ConfigError unless the field is one of `choices`, which may begin with None."""
    names = ", ".join(choice for choice in choices if choice is not None)
    right = f"null or one of {names}" if None in choices else f"one of {names}"
    require(getattr(config, field) in choices, config, field, right)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Everything that determines a :class:`sqat.model.Decoder`, except its weights.

    Three numbers make the attention variant: `num_query_heads` (Hq), `num_kv_heads` (Hkv) and `head_dim`. Full
    attention of the same width would have H = `hidden_size / head_dim` heads. Sparse Query Attention (arXiv
    2510.01817) has Hq < H; its reverse form has Hq < Hkv, where one query head serves several key/value heads.
    :func:`sqat.variants.head_counts` turns the name of a variant into these numbers.

    Args:
        vocab_size: entries of the embedding.
        hidden_size: D, the width of the residual stream.
        num_layers: decoder layers.
        num_query_heads: Hq; a multiple or a divisor of Hkv.
        num_kv_heads: Hkv.
        head_dim: size of one head; even, since rotary embeddings turn pairs.
        intermediate_size: hidden width of the feed-forward layer, or of each expert.
        context_length: tokens in a training row; rotary tables grow beyond it on demand.
        num_experts: experts in each layer; 0 for one dense feed-forward layer.
        experts_per_token: experts that the router picks for a token; ignored if `num_experts` is 0.
        activation: one of `ACTIVATIONS`.
        gated: multiply the activation by a second projection (as SwiGLU does).
        norm: norm before attention and feed-forward; one of `NORMS`.
        norm_eps: epsilon of the norms; None for torch's default.
        final_norm: norm between the last layer and the head, or None, as in the original RxNN models.
        tie_embeddings: use the embedding matrix as the head, too.
        qkv_bias, attention_out_bias, feedforward_bias, head_bias: whether these projections have biases.
        rope_theta: base of the rotary embedding.
        attention_dropout: dropout of attention weights.
        feedforward_dropout: dropout between the two feed-forward projections.
        init: "normal", or "torch" for PyTorch's defaults, as in the original; see `sqat.model.decoder`.
        window: positions that a token attends to, itself included; None for all before it.
        global_tokens: the first tokens of a document that all later ones attend to; needs a window.

    Raises:
        ConfigError: a field has an unusable value; the message names it and says what would be right.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_length: int
    num_experts: int = 0
    experts_per_token: int = 2
    activation: str = "silu"
    gated: bool = True
    norm: str = "rmsnorm"
    norm_eps: float | None = 1e-6
    final_norm: str | None = "rmsnorm"
    tie_embeddings: bool = True
    qkv_bias: bool = False
    attention_out_bias: bool = False
    feedforward_bias: bool = False
    head_bias: bool = False
    rope_theta: float = 10000.0
    attention_dropout: float = 0.0
    feedforward_dropout: float = 0.0
    init: str = "normal"
    window: int | None = None
    global_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_query_heads", "num_kv_heads", "head_dim"):
            require_positive(self, name)
        require_positive(self, "intermediate_size")
        require(self.context_length >= 2, self, "context_length", "at least 2 (one token and the one after it)")
        for name, most in CEILINGS.items():
            require(getattr(self, name) <= most, self, name, f"at most {most:,}")
        require(self.head_dim % 2 == 0, self, "head_dim", "even, since rotary embedding turns pairs")
        query_heads, kv_heads = self.num_query_heads, self.num_kv_heads
        divisors = ", ".join(str(heads) for heads in range(1, query_heads + 1) if query_heads % heads == 0)
        right = f"a divisor of num_query_heads ({query_heads}): {divisors}; or a multiple of it"
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
        require_choice(self, "final_norm", (None, *NORMS))
        require_choice(self, "init", INITS)
        eps, theta = self.norm_eps, self.rope_theta
        require(eps is None or 0 < eps < math.inf, self, "norm_eps", "positive, or null for torch's default")
        require(0 < theta < math.inf, self, "rope_theta", "positive and finite, such as 10000")
        for name in ("attention_dropout", "feedforward_dropout"):
            require(0 <= getattr(self, name) < 1, self, name, "at least 0 and below 1")

    @property
    def num_heads(self) -> int:
        """H: the heads of full attention of this width (at least Hq and Hkv)."""
        return max(self.hidden_size // self.head_dim, self.num_score_heads)

    @property
    def num_score_heads(self) -> int:
        """The heads that attention scores are computed for, and that the output projection reads: max(Hq, Hkv)."""
        return max(self.num_query_heads, self.num_kv_heads)

    @property
    def is_moe(self) -> bool:
        """Whether the layers have experts."""
        return self.num_experts > 0

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


def heads_fit(query_heads: int, kv_heads: int) -> bool:
    """Whether every query head reads one key/value head, or every key/value head serves one query head."""
    return query_heads % kv_heads == 0 or kv_heads % query_heads == 0
