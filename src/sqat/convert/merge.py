"""A model with fewer heads out of a model with more: the arithmetic on attention tensors.

Shape letters: H query heads, C head_dim, D hidden size; X several of these flattened.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sqat.convert.architectures import QUERIES, Heads, fused, output_name, unfused
from sqat.convert.heads import Groups

Tensors = dict[str, Tensor]
NORMS = {
    "q_proj": ("q_norm.", "q_layernorm.", "query_layernorm."),
    "k_proj": ("k_norm.", "k_layernorm.", "key_layernorm."),
}


def merge_attention(tensors: Mapping[str, Tensor], groups: Groups, heads: Heads, new: Heads) -> Tensors:
    """The tensors of a layer's attention (names as in its module) with the heads of each group merged.

    - Query rows, and biases, are averaged. Rotation is linear, so this averages rotated queries, and with them the
      attention scores.
    - Output columns are summed: exact where the merged heads attend alike.
    - Keys and values are averaged over the old heads that a new one stands for. Heads with the same output columns and
      the same attention then still add the same: (o + o) · (v + w) / 2 = o · v + o · w.
    - What else a query head has (a gate's rows, a sink) is averaged as its rows are.
    - Where every query (key) is normalised after its projection, the size of its rows means nothing, and rows are
      brought to their mean size before they are averaged, so that no head outweighs another. The norms themselves are
      shared by the heads of a layer, and stay; so does an output bias.

    Sums are taken in float32 and rounded once.
    """
    own = unfused(tensors, heads)
    result = {**own, **_merged_keys_and_values(own, heads, new)}
    for name in QUERIES:
        result |= _averaged(own, name, groups, heads.query)
    output = f"{output_name(tensors)}.weight"
    weight_DX = tensors[output]
    columns_HDC = weight_DX.float().unflatten(1, (heads.query, heads.head_dim)).transpose(0, 1)
    summed_HDC = torch.stack([columns_HDC[list(group)].sum(dim=0) for group in groups])
    result[output] = summed_HDC.transpose(0, 1).flatten(1).to(weight_DX.dtype).contiguous()
    return fused(result, tensors)


def shared_keys_and_values(tensors: Mapping[str, Tensor], heads: Heads, new: Heads) -> Tensors:
    """The key and value projections of :func:`merge_attention`, repeated for the old number of heads: a layer with them
    attends as the merged one will.
    """
    own = unfused(tensors, heads)
    merged, times = _merged_keys_and_values(own, heads, new), heads.kv // new.kv
    by_head = {name: tensor.unflatten(0, (new.kv, -1)) for name, tensor in merged.items()}
    shared = {name: tensor.repeat_interleave(times, dim=0).flatten(0, 1) for name, tensor in by_head.items()}
    whole = fused({**own, **shared}, tensors)
    return {name: whole[name] for name in whole if name in shared or name not in own}


def _merged_keys_and_values(tensors: Mapping[str, Tensor], heads: Heads, new: Heads) -> Tensors:
    size = heads.kv // new.kv
    pools = [tuple(range(start, start + size)) for start in range(0, heads.kv, size)]
    return _averaged(tensors, "k_proj", pools, heads.kv) | _averaged(tensors, "v_proj", pools, heads.kv)


def _averaged(tensors: Mapping[str, Tensor], name: str, groups: Groups, heads: int) -> Tensors:
    """What a module has under a name, for `heads` heads, averaged over each group."""
    own = {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] == name}
    # Biases are one more column, which the input multiplies by one.
    parts = [tensor.float().view(len(tensor), -1).unflatten(0, (heads, -1)) for tensor in own.values()]
    if not parts:
        return {}
    rows_HCD = torch.cat(parts, dim=2)
    if any(key.startswith(NORMS.get(name, ())) for key in tensors):
        size_H = rows_HCD.flatten(1).norm(dim=1).clamp(min=1e-30)
        means = [
            (rows_HCD[list(g)] * (size_H[list(g)].mean() / size_H[list(g)])[:, None, None]).mean(dim=0) for g in groups
        ]
    else:
        means = [rows_HCD[list(group)].mean(dim=0) for group in groups]
    merged = torch.stack(means).split([part.shape[2] for part in parts], dim=2)
    return {
        key: part.reshape(-1, *tensor.shape[1:]).to(tensor.dtype).contiguous()
        for (key, tensor), part in zip(own.items(), merged, strict=True)
    }
