"""RxNN's checkpoint tensors, read and written.

The original turns neighbouring pairs of a head (x[0::2], x[1::2]) where this package turns halves; permuting the rows
of `q_proj` and `k_proj` within each head carries one into the other, bit for bit. Its experts are separate modules;
ours are stacked. With more key/value heads than query heads (reverse SQA) its query head i serves key/value heads i,
i + Hq, i + 2·Hq, …, where ours serves neighbours; permuting key/value heads carries one into the other.

Shape letters: H heads, C head_dim, D the other width, I the output projection's inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sqat.config import ModelConfig
from sqat.errors import ConfigError

# Native name -> original's, in the order they are tried.
_RENAMES = [
    (r"^(embedding|head)\.", r"model.\1."),
    (r"^final_norm\.", "model.head_norm."),
    (r"^layers\.(\d+)\.(norm1|norm2|attention)\.", r"model.layers.\1.\2."),
    (r"^layers\.(\d+)\.feedforward\.router\.", r"model.layers.\1.ff.router.gate."),
    (r"^layers\.(\d+)\.feedforward\.(fc[12])[._](weight|bias)$", r"model.layers.\1.ff.\2.\3"),
]


def rxnn_name(name: str, config: ModelConfig) -> str:
    """The original's name of a native tensor; stacked experts have `experts.*` in place of each number."""
    for pattern, replacement in _RENAMES:
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            if config.gated:
                renamed = renamed.replace(".ff.fc1.", ".ff.fc1.linear.")
            if config.is_moe and ".ff.fc" in renamed:
                renamed = renamed.replace(".ff.", ".ff.experts.*.")
            return renamed
    raise ConfigError(f"tensor {name!r} has no place in RxNN's layout")


def _expand(names: Iterable[str], config: ModelConfig) -> dict[str, list[str]]:
    """Native name -> the original's names: one, or one per expert."""
    result: dict[str, list[str]] = {}
    for name in names:
        renamed = rxnn_name(name, config)
        stacked = "*" in renamed
        result[name] = [renamed.replace("*", str(e)) for e in range(config.num_experts)] if stacked else [renamed]
    return result


def shapes_to_rxnn(shapes: Mapping[str, torch.Size], config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor under the original's names."""
    return {
        renamed: shapes[name][1:] if ".experts." in renamed else shapes[name]
        for name, names in _expand(shapes, config).items()
        for renamed in names
    }


def tensors_to_rxnn(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors under the original's names and in its order of rotary pairs, with its `inv_freq` buffer."""
    result: dict[str, Tensor] = {}
    for name, names in _expand(tensors, config).items():
        tensor = _permute_rotary(name, tensors[name], config, halves_to_pairs)
        tensor = _permute_reverse(name, tensor, config, to_rxnn=True)
        parts = tensor.unbind() if ".experts." in names[0] else (tensor,)
        result |= {renamed: part.clone().contiguous() for renamed, part in zip(names, parts, strict=True)}
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    result["model.layers.0.attention.rope.inv_freq"] = 1.0 / config.rope_theta**exponents
    return result


def tensors_from_rxnn(tensors: Mapping[str, Tensor], config: ModelConfig, names: Iterable[str]) -> dict[str, Tensor]:
    """Native tensors from the original's, all of which must be there.

    Args:
        names: the native tensors' names.
    """
    result: dict[str, Tensor] = {}
    for name, originals in _expand(names, config).items():
        parts = [tensors[renamed] for renamed in originals]
        tensor = torch.stack(parts) if ".experts." in originals[0] else parts[0]
        tensor = _permute_reverse(name, tensor, config, to_rxnn=False)
        result[name] = _permute_rotary(name, tensor, config, _pairs_to_halves)
    return result


def drop_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without rotary tables, which carry no information."""
    return {name: tensor for name, tensor in tensors.items() if not re.search(r"\.rope\.(inv_freq|cache)$", name)}


def _permute_rotary(name: str, tensor: Tensor, config: ModelConfig, permute: Callable[[Tensor], Tensor]) -> Tensor:
    if not name.endswith(("attention.q_proj.weight", "attention.k_proj.weight")):
        return tensor
    heads_HCD = tensor.unflatten(0, (-1, config.head_dim))
    return permute(heads_HCD).flatten(0, 1).contiguous()


def _permute_reverse(name: str, tensor: Tensor, config: ModelConfig, *, to_rxnn: bool) -> Tensor:
    """Key/value heads in the other order, where they are more than query heads."""
    times = config.num_kv_heads // config.num_query_heads
    if times <= 1 or ".attention." not in name:
        return tensor
    # A head's place is (query head, which of its own) here, and (which of its own, query head) there.
    places = (config.num_query_heads, times) if to_rxnn else (times, config.num_query_heads)
    if name.endswith(("k_proj.weight", "v_proj.weight")):
        return tensor.unflatten(0, (*places, -1)).transpose(0, 1).flatten(0, 2).contiguous()
    if name.endswith("out_proj.weight"):
        return tensor.unflatten(1, (*places, -1)).transpose(1, 2).flatten(1, 3).contiguous()
    return tensor


def _pairs_to_halves(heads_HCD: Tensor) -> Tensor:
    return torch.cat((heads_HCD[:, 0::2], heads_HCD[:, 1::2]), dim=1)


def halves_to_pairs(heads_HCD: Tensor) -> Tensor:
    """Rows of each head in the order that rotates neighbours, from the order that rotates halves; (H, C) as well."""
    return torch.stack(heads_HCD.chunk(2, dim=1), dim=2).flatten(1, 2)
