"""RxNN's checkpoints: its `config.json`, which holds its constructor's arguments, and its tensors; read and written.

RxNN, the original system, differs in three ways, and all three are permutations, bit for bit:

- It rotates neighbouring pairs of a head (x[0::2], x[1::2]), this package rotates halves. Permuting the rows of
  `q_proj` and `k_proj` within each head turns one into the other.
- Its experts are separate modules; here they are stacked.
- With more key/value heads than query heads (reverse SQA), its query head i reads key/value heads i, i + Hq, i + 2·Hq,
  …; here it reads neighbours.

Shape letters: H heads, C head_dim, D the other width, I the output projection's inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sqat.config import ModelConfig
from sqat.errors import ConfigError
from sqat.untrusted import shown

# Its window attention (flex, swsqa) is neither causal nor exact, so its weights mean nothing under our windows.
ATT_TYPES = ("mha", "gqa", "mqa", "sqa")

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
# Arguments that change nothing here: kernels, attention types that are not supported, initialisation.
_IGNORED = {
    "use_flash_attention",
    "att_num_experts",
    "att_num_query_experts",
    "att_num_global_tokens",
    "att_window_size",
    "init_identity_norm",
}
_RENAMED_FIELDS = {  # ModelConfig's -> RxNN's
    "vocab_size": "vocab_size",
    "hidden_size": "embed_dim",
    "num_layers": "num_layers",
    "intermediate_size": "ff_dim",
    "context_length": "seq_len",
    "experts_per_token": "ff_moe_top_k",
    "activation": "ff_activation",
    "gated": "use_gated",
    "attention_dropout": "att_dropout",
    "feedforward_dropout": "ff_dropout",
}
_FIXED_FIELDS = {  # what every model of RxNN has
    "tie_embeddings": False,
    "qkv_bias": False,
    "attention_out_bias": True,
    "feedforward_bias": True,
    "head_bias": True,
    "norm_eps": None,
    "rope_theta": 10000.0,
}


def is_rxnn_config(values: Any) -> bool:
    """Whether a parsed `config.json` holds RxNN's constructor arguments."""
    return isinstance(values, dict) and "embed_dim" in values and "att_type" in values


def config_from_rxnn(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration that RxNN's constructor arguments describe.

    Raises:
        ConfigError: an unsupported `att_type`, an unknown key, or head counts that do not fit.
    """
    if unknown := sorted(set(values) - set(DEFAULTS) - _IGNORED):
        known = ", ".join(sorted(set(DEFAULTS) | _IGNORED))
        raise ConfigError(f"unknown key {shown(unknown[0])}; the keys of RxNN's config are {known}")
    v = {**DEFAULTS, **values}
    if v["att_type"] not in ATT_TYPES:
        raise ConfigError(f"att_type is {shown(v['att_type'])}, but must be one of {', '.join(ATT_TYPES)}")
    width, heads = v["embed_dim"], v["att_heads"]
    if not (isinstance(width, int) and isinstance(heads, int) and heads >= 1 and width % heads == 0):
        raise ConfigError(f"att_heads is {shown(heads)}, but must be a number that divides embed_dim ({shown(width)})")
    query_heads, kv_heads = {
        "mha": (heads, heads),
        "gqa": (heads, v["att_groups"]),
        "mqa": (heads, 1),
        "sqa": (v["att_num_query_groups"], v["att_groups"]),
    }[v["att_type"]]
    if query_heads is None:
        raise ConfigError("att_num_query_groups is None, but att_type 'sqa' needs the number of query heads")
    return ModelConfig.from_dict(
        {
            **{ours: v[theirs] for ours, theirs in _RENAMED_FIELDS.items()},
            **_FIXED_FIELDS,
            "num_query_heads": query_heads,
            "num_kv_heads": kv_heads,
            "head_dim": width // heads,
            "num_experts": v["ff_num_experts"] if v["use_moe_ff"] else 0,
            "norm": "rmsnorm" if v["use_rms_norm"] else "layernorm",
            "final_norm": "layernorm" if v["use_head_norm"] else None,
            "init": "torch",
        }
    )


def config_to_rxnn(config: ModelConfig) -> dict[str, Any]:
    """RxNN's constructor arguments for a configuration.

    Raises:
        ConfigError: RxNN cannot express the architecture; the message names the field.
    """
    heads = config.hidden_size // config.head_dim
    right: dict[str, Any] = {"head_dim": config.hidden_size / heads if heads else None, **_FIXED_FIELDS}
    right |= {"window": None, "final_norm": None if config.final_norm is None else "layernorm"}
    for field, value in right.items():
        if (found := getattr(config, field)) != value:
            raise ConfigError(f"{field} is {found!r}, but RxNN's layout holds models with {field} {value!r} only")
    full = {heads: "mha", 1: "mqa"}.get(config.num_kv_heads, "gqa")
    att_type = full if config.num_query_heads == heads else "sqa"
    values = {
        **{theirs: getattr(config, ours) for ours, theirs in _RENAMED_FIELDS.items()},
        "att_groups": config.num_kv_heads,
        "att_heads": heads,
        "att_num_experts": None,
        "att_num_query_experts": None,
        "att_num_query_groups": config.num_query_heads if att_type == "sqa" else None,
        "att_type": att_type,
        "ff_num_experts": config.num_experts if config.is_moe else 1,
        "use_flash_attention": False,
        "use_moe_ff": config.is_moe,
        "use_rms_norm": config.norm == "rmsnorm",
    }
    if config.final_norm == "layernorm":
        values["use_head_norm"] = True
    return values


# This package's name -> RxNN's, tried in this order.
_RENAMES = [
    (r"^(embedding|head)\.", r"model.\1."),
    (r"^final_norm\.", "model.head_norm."),
    (r"^layers\.(\d+)\.(norm1|norm2|attention)\.", r"model.layers.\1.\2."),
    (r"^layers\.(\d+)\.feedforward\.router\.", r"model.layers.\1.ff.router.gate."),
    (r"^layers\.(\d+)\.feedforward\.(fc[12])[._](weight|bias)$", r"model.layers.\1.ff.\2.\3"),
]


def _expand(names: Iterable[str], config: ModelConfig) -> dict[str, list[str]]:
    """This package's name -> RxNN's names: one, or one per expert."""
    result: dict[str, list[str]] = {}
    for name in names:
        renamed = next(new for old, to in _RENAMES if (new := re.sub(old, to, name)) != name)
        if config.gated:
            renamed = renamed.replace(".ff.fc1.", ".ff.fc1.linear.")
        if config.is_moe and ".ff.fc" in renamed:
            result[name] = [renamed.replace(".ff.", f".ff.experts.{e}.") for e in range(config.num_experts)]
        else:
            result[name] = [renamed]
    return result


def shapes_to_rxnn(shapes: Mapping[str, torch.Size], config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor under RxNN's names."""
    return {
        renamed: shapes[name][1:] if ".experts." in renamed else shapes[name]
        for name, names in _expand(shapes, config).items()
        for renamed in names
    }


def tensors_to_rxnn(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors under RxNN's names and in its order of rotary pairs, with its `inv_freq` buffer."""
    result: dict[str, Tensor] = {}
    for name, names in _expand(tensors, config).items():
        tensor = _permuted(name, tensors[name], config, to_rxnn=True)
        parts = tensor.unbind() if ".experts." in names[0] else (tensor,)
        result |= {renamed: part.clone().contiguous() for renamed, part in zip(names, parts, strict=True)}
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    result["model.layers.0.attention.rope.inv_freq"] = 1.0 / config.rope_theta**exponents
    return result


def tensors_from_rxnn(tensors: Mapping[str, Tensor], config: ModelConfig, names: Iterable[str]) -> dict[str, Tensor]:
    """This package's tensors, called `names`, from RxNN's, all of which must be there."""
    result: dict[str, Tensor] = {}
    for name, theirs in _expand(names, config).items():
        parts = [tensors[renamed] for renamed in theirs]
        tensor = torch.stack(parts) if ".experts." in theirs[0] else parts[0]
        result[name] = _permuted(name, tensor, config, to_rxnn=False)
    return result


def drop_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without rotary tables, which follow from the configuration."""
    return {name: tensor for name, tensor in tensors.items() if not re.search(r"\.rope\.(inv_freq|cache)$", name)}


def _permuted(name: str, tensor: Tensor, config: ModelConfig, *, to_rxnn: bool) -> Tensor:
    """A projection with rotary pairs, and with key/value heads where there are more than query heads, in the other
    layout's order.
    """
    if name.endswith(("attention.q_proj.weight", "attention.k_proj.weight")):
        heads_HCD = tensor.unflatten(0, (-1, config.head_dim))
        permute = halves_to_pairs if to_rxnn else _pairs_to_halves
        tensor = permute(heads_HCD).flatten(0, 1).contiguous()
    times = config.num_kv_heads // config.num_query_heads
    if times <= 1:
        return tensor
    # A head's index is (query head, which of its own) here, and (which of its own, query head) in RxNN.
    places = (config.num_query_heads, times) if to_rxnn else (times, config.num_query_heads)
    if name.endswith(("attention.k_proj.weight", "attention.v_proj.weight")):
        return tensor.unflatten(0, (*places, -1)).transpose(0, 1).flatten(0, 2).contiguous()
    if name.endswith("attention.out_proj.weight"):
        return tensor.unflatten(1, (*places, -1)).transpose(1, 2).flatten(1, 3).contiguous()
    return tensor


def _pairs_to_halves(heads_HCD: Tensor) -> Tensor:
    return torch.cat((heads_HCD[:, 0::2], heads_HCD[:, 1::2]), dim=1)


def halves_to_pairs(heads_HCD: Tensor) -> Tensor:
    """Rows of each head, (H, C, ...), from the order that rotates halves to the one that rotates neighbours."""
    return torch.stack(heads_HCD.chunk(2, dim=1), dim=2).flatten(1, 2)
