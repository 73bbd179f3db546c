"""RxNN's `config.json`, which holds its constructor's keyword arguments, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqat.config import ModelConfig
from sqat.errors import ConfigError
from sqat.untrusted import shown

# Arguments that change nothing here: kernels, limits of attention types that are not supported, initialisation.
_IGNORED = {
    "use_flash_attention",
    "att_num_experts",
    "att_num_query_experts",
    "att_num_global_tokens",
    "att_window_size",
    "init_identity_norm",
}
ATT_TYPES = ("mha", "gqa", "mqa", "sqa")
_WINDOWED = ("flex", "flex-sqa", "swsqa", "sw-sqa")  # later versions and releases

DEFAULTS: dict[str, Any] = {
    "num_layers": 6,
    "vocab_size": 5000,
    "embed_dim": 128,
    "ff_dim": 384,
    "att_heads": 16,
    "seq_len": 256,
    "use_gated": True,
    "ff_activation": "swish",
    "ff_dropout": 0.0,
    "att_dropout": 0.0,
    "use_rms_norm": True,
    "att_groups": 1,
    "use_moe_ff": False,
    "ff_num_experts": 1,
    "ff_moe_top_k": 1,
    "att_type": "gma",
    "att_num_query_groups": None,
    "use_head_norm": False,
}


def is_rxnn_config(values: Any) -> bool:
    """Whether a parsed `config.json` holds the original's keyword arguments."""
    return isinstance(values, dict) and "embed_dim" in values and "att_type" in values


def config_from_rxnn(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration that the original's keyword arguments describe.

    Raises:
        ConfigError: an unsupported `att_type`, an unknown key, or counts that do not fit.
    """
    if unknown := sorted(set(values) - set(DEFAULTS) - _IGNORED):
        known = ", ".join(sorted(set(DEFAULTS) | _IGNORED))
        raise ConfigError(f"unknown key {shown(unknown[0])}; the keys of RxNN's config are {known}")
    v = {**DEFAULTS, **values}
    if v["att_type"] in _WINDOWED:
        raise ConfigError(
            f"att_type is {v['att_type']!r}, but must be one of {', '.join(ATT_TYPES)}: RxNN's window attention is "
            "neither causal nor exact (queries go in blocks, each sees from a window before its block to a window "
            "after it), so its weights mean nothing under this package's windows"
        )
    if v["att_type"] not in ATT_TYPES:
        raise ConfigError(f"att_type is {shown(v['att_type'])}, but must be one of {', '.join(ATT_TYPES)}")
    width, heads = v["embed_dim"], v["att_heads"]
    for key, value in (("embed_dim", width), ("att_heads", heads)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key} is {shown(value)}, but must be a positive integer")
    if width % heads:
        raise ConfigError(f"att_heads is {heads}, but must divide embed_dim ({width})")
    query_heads, kv_heads = {
        "mha": (heads, heads),
        "gqa": (heads, v["att_groups"]),
        "mqa": (heads, 1),
        "sqa": (v["att_num_query_groups"], v["att_groups"]),
    }[v["att_type"]]
    if query_heads is None:
        raise ConfigError("att_num_query_groups is None, but att_type 'sqa' needs the number of query heads")
    fields = {
        "vocab_size": v["vocab_size"],
        "hidden_size": width,
        "num_layers": v["num_layers"],
        "num_query_heads": query_heads,
        "num_kv_heads": kv_heads,
        "head_dim": width // heads,
        "intermediate_size": v["ff_dim"],
        "context_length": v["seq_len"],
        "num_experts": v["ff_num_experts"] if v["use_moe_ff"] else 0,
        "experts_per_token": v["ff_moe_top_k"],
        "activation": v["ff_activation"],
        "gated": v["use_gated"],
        "norm": "rmsnorm" if v["use_rms_norm"] else "layernorm",
        "norm_eps": None,
        "final_norm": "layernorm" if v["use_head_norm"] else None,
        "tie_embeddings": False,
        "attention_out_bias": True,
        "feedforward_bias": True,
        "head_bias": True,
        "attention_dropout": v["att_dropout"],
        "feedforward_dropout": v["ff_dropout"],
        "init": "torch",
    }
    return ModelConfig.from_dict(fields)


def config_to_rxnn(config: ModelConfig) -> dict[str, Any]:
    """The original's keyword arguments for a configuration.

    Raises:
        ConfigError: the architecture is not one that the original could express; the message names the field.
    """
    heads = config.hidden_size // config.head_dim
    expected = {
        "head_dim": config.hidden_size / heads if heads else None,
        "tie_embeddings": False,
        "qkv_bias": False,
        "attention_out_bias": True,
        "feedforward_bias": True,
        "head_bias": True,
        "norm_eps": None,
        "rope_theta": 10000.0,
    }
    for field, right in expected.items():
        if getattr(config, field) != right:
            raise ConfigError(
                f"{field} is {getattr(config, field)!r}, but RxNN's layout holds models with {field} {right!r} only"
            )
    if config.window is not None:
        raise ConfigError(
            f"window is {config.window}, but RxNN's layout holds models with window None only: its own window "
            "attention is neither causal nor exact"
        )
    if config.final_norm == "rmsnorm":
        raise ConfigError(
            "final_norm is 'rmsnorm', but RxNN's layout holds models with final_norm null or 'layernorm' only"
        )
    query_heads, kv_heads = config.num_query_heads, config.num_kv_heads
    full = {heads: "mha", 1: "mqa"}.get(kv_heads, "gqa")
    att_type = full if query_heads == heads else "sqa"
    values = {
        "att_dropout": config.attention_dropout,
        "att_groups": kv_heads,
        "att_heads": heads,
        "att_num_experts": None,
        "att_num_query_experts": None,
        "att_num_query_groups": query_heads if att_type == "sqa" else None,
        "att_type": att_type,
        "embed_dim": config.hidden_size,
        "ff_activation": config.activation,
        "ff_dim": config.intermediate_size,
        "ff_dropout": config.feedforward_dropout,
        "ff_moe_top_k": config.experts_per_token,
        "ff_num_experts": config.num_experts if config.is_moe else 1,
        "num_layers": config.num_layers,
        "seq_len": config.context_length,
        "use_flash_attention": False,
        "use_gated": config.gated,
        "use_moe_ff": config.is_moe,
        "use_rms_norm": config.norm == "rmsnorm",
        "vocab_size": config.vocab_size,
    }
    if config.final_norm == "layernorm":
        values["use_head_norm"] = True
    return values
