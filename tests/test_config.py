"""Model configurations: what is refused and how, and plain data in and out."""

import dataclasses
import re

import pytest

from sqat.config import ModelConfig
from sqat.errors import ConfigError, SqatError
from sqat.variants import PRESETS, preset

INVALID = [
    *((name, 0, "at least 1") for name in ("vocab_size", "num_layers", "num_query_heads", "num_kv_heads", "head_dim")),
    *((name, -23, "at least 1") for name in ("hidden_size", "intermediate_size")),
    *(("num_kv_heads", n, "a divisor of num_query_heads (6): 1, 2, 3, 6; or a multiple of it") for n in (4, 9)),
    ("window", 0, "at least 1, or null for no window"),
    ("global_tokens", -1, "0 (none) or more"),
    ("global_tokens", 2, "0 where window is null, since every token then sees all before it"),
    ("head_dim", 7, "even"),
    ("context_length", 1, "at least 2"),
    ("num_experts", -1, "0 (dense) or more"),
    ("activation", "tanh", "one of silu, swish, gelu, relu, sigmoid, linear"),
    *(("norm", name, "one of rmsnorm, layernorm") for name in ("batchnorm", "none")),
    ("final_norm", "batchnorm", "null or one of rmsnorm, layernorm"),
    *(("norm_eps", eps, "positive, or null") for eps in (0.0, -1e-6)),
    *(("rope_theta", theta, "positive") for theta in (0.0, float("nan"))),
    *(("attention_dropout", p, "at least 0 and below 1") for p in (1.0, -0.1)),
    ("feedforward_dropout", 1.5, "at least 0 and below 1"),
    ("init", "xavier", "one of normal, torch"),
]

CONVERTED = [
    *(("num_layers", value, 3) for value in ("3", 3.0, "3e0")),
    *(("rope_theta", "2e-3", 0.002), ("rope_theta", 500000, 500000.0)),
    *(("norm_eps", value, None) for value in ("null", "None", None)),
    *(("final_norm", "null", None), ("final_norm", "layernorm", "layernorm")),
    *(("gated", "False", False), ("gated", "true", True)),
]

WRONG_TYPE = [
    *(("num_layers", value, "a whole number") for value in (2.5, "two", "nan", "inf", 1e999, True, None, "null", [2])),
    ("num_layers", 10**30, "at most 9,223,372,036,854,775,807"),
    ("num_layers", -(10**30), "at least -9,223,372,036,854,775,807"),
    *(("rope_theta", value, "a finite number") for value in ("1e999", float("nan"), "high", False)),
    *(("gated", value, "true or false") for value in (1, "yes")),
    ("norm", 5, "text"),
    ("norm_eps", "small", "a finite number or null"),
    ("final_norm", 1.0, "text or null"),
]


def must_be(field, value, right):
    """The message about a field of ModelConfig, as a pattern: field, value and remedy."""
    return re.escape(f"ModelConfig.{field} is {value!r}, but must be {right}")


@pytest.mark.parametrize(("field", "value", "right"), INVALID)
def test_unusable_values_are_refused_by_name(tiny_config, field, value, right):
    with pytest.raises(ConfigError, match=must_be(field, value, right)):
        dataclasses.replace(tiny_config(), **{field: value})


@pytest.mark.parametrize("value", [0, 8])
def test_experts_per_token_lies_within_the_experts(tiny_config, value):
    with pytest.raises(ConfigError, match=must_be("experts_per_token", value, "between 1 and num_experts (7)")):
        tiny_config(moe=True, experts_per_token=value)
    assert tiny_config(moe=False, experts_per_token=value).experts_per_token == value  # ignored


@pytest.mark.parametrize(("field", "value", "expected"), CONVERTED)
def test_plain_data_is_read_leniently(tiny_config, field, value, expected):
    found = getattr(tiny_config(**{field: value}), field)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("field", "value", "kind"), WRONG_TYPE)
def test_wrong_types_are_refused_by_name(tiny_config, field, value, kind):
    with pytest.raises(ConfigError, match=must_be(field, value, kind) + "$"):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("hiden_size", "did you mean 'hidden_size'?"),
        ("num_kv_head", "did you mean 'num_kv_heads'?"),
        ("zzz", "the fields are vocab_size, hidden_size,"),
    ],
)
def test_unknown_fields_get_a_hint(tiny_config, field, hint):
    with pytest.raises(ConfigError, match=re.escape(f"ModelConfig: unknown field {field!r}; {hint}")):
        tiny_config(**{field: 1})


def test_missing_fields_are_named_and_only_a_mapping_holds_fields(tiny_config):
    for field in ("vocab_size", "context_length"):
        values = tiny_config().to_dict()
        del values[field]
        with pytest.raises(ConfigError, match=f"ModelConfig: field '{field}' is missing"):
            ModelConfig.from_dict(values)
    for values in (None, "sqat-mm", [("vocab_size", 5)], 3):
        message = re.escape(f"ModelConfig: expected a mapping of fields, found {values!r}")
        with pytest.raises(ConfigError, match=message):
            ModelConfig.from_dict(values)


@pytest.mark.parametrize("name", PRESETS)
def test_dictionaries_hold_everything(name):
    config = preset(name)
    values = config.to_dict()
    assert set(values) == {field.name for field in dataclasses.fields(config)}
    assert ModelConfig.from_dict(values) == config


def test_configs_are_frozen_and_replace_makes_a_checked_copy(tiny_config):
    config = tiny_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 5
    changed = config.replace(num_layers=5)
    assert (config.num_layers, changed.num_layers) == (2, 5)
    assert changed.replace(num_layers=2) == config
    with pytest.raises(ConfigError, match="num_layers is 0"):
        config.replace(num_layers=0)


def test_heads_of_full_attention_and_experts(tiny_config):
    for query_heads, width in ((2, 60), (6, 60), (6, 23), (4, 67)):
        assert tiny_config(num_query_heads=query_heads, num_kv_heads=1, hidden_size=width).num_heads == 6
    assert tiny_config(num_experts=1, experts_per_token=1).is_moe
    assert not tiny_config(num_experts=0).is_moe
    assert {SqatError, ValueError} <= {*ConfigError.__mro__}
