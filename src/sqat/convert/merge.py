"""A model with fewer heads out of a model with more: the arithmetic on attention tensors.

Shape letters: H query heads, C head_dim, D hidden size; X several of these flattened.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sqat.convert.architectures import Heads
from sqat.convert.heads import Groups

Tensors = dict[str, Tensor]


def merge_attention(tensors: Mapping[str, Tensor], groups: Groups, heads: Heads, new: Heads) -> Tensors:
    """The tensors of a layer's attention (names below `self_attn.`) with the heads of each group merged.

    - Query rows, and biases, are averaged. Rotation is linear, so this averages rotated queries, and with them the
      attention scores.
    - Output columns are summed: exact where the merged heads attend alike.
    - Keys and values are averaged over the old heads that a new one stands for. Heads with the same output columns and
      the same attention then still add the same: (o + o) · (v + w) / 2 = o · v + o · w.
    - Where every query (key) is normalised after its projection, the size of its rows means nothing, and rows are
      brought to their mean size before they are averaged, so that no head outweighs another. The norms themselves are
      shared by the heads of a layer, and stay; so does an output bias.

    Sums are taken in float32 and rounded once.
    """
    result = {**tensors, **_averaged(tensors, "q_proj", groups, heads), **_merged_keys_and_values(tensors, heads, new)}
    weight_DX = tensors["o_proj.weight"]
    columns_HDC = weight_DX.float().unflatten(1, (heads.query, heads.head_dim)).transpose(0, 1)
    summed_HDC = torch.stack([columns_HDC[list(group)].sum(dim=0) for group in groups])
    result["o_proj.weight"] = summed_HDC.transpose(0, 1).flatten(1).to(weight_DX.dtype).contiguous()
    return result


def shared_keys_and_values(tensors: Mapping[str, Tensor], heads: Heads, new: Heads) -> Tensors:
    """The key and value projections of :func:`merge_attention`, repeated for the old number of heads: a layer with them
    attends as the merged one will.
    """
    merged, times = _merged_keys_and_values(tensors, heads, new), heads.kv // new.kv
    by_head = {name: tensor.unflatten(0, (new.kv, heads.head_dim)) for name, tensor in merged.items()}
    return {name: tensor.repeat_interleave(times, dim=0).flatten(0, 1) for name, tensor in by_head.items()}


def _merged_keys_and_values(tensors: Mapping[str, Tensor], heads: Heads, new: Heads) -> Tensors:
    size = heads.kv // new.kv
    pools = [tuple(range(start, start + size)) for start in range(0, heads.kv, size)]
    return _averaged(tensors, "k_proj", pools, heads) | _averaged(tensors, "v_proj", pools, heads)


def _averaged(tensors: Mapping[str, Tensor], name: str, groups: Groups, heads: Heads) -> Tensors:
    equalise = name.replace("_proj", "_norm") + ".weight" in tensors
    weight_XD = tensors[f"{name}.weight"]
    bias_X = tensors.get(f"{name}.bias")
    rows_XD = weight_XD.float()
    if bias_X is not None:  # one more column, which the input multiplies by one
        rows_XD = torch.cat((rows_XD, bias_X.float().unsqueeze(1)), dim=1)
    rows_HCD, means = rows_XD.unflatten(0, (-1, heads.head_dim)), []
    for group in groups:
        own_HCD = rows_HCD[list(group)]
        if equalise:
            size_H = own_HCD.flatten(1).norm(dim=1).clamp(min=1e-30)
            own_HCD = own_HCD * (size_H.mean() / size_H)[:, None, None]
        means.append(own_HCD.mean(dim=0))
    merged_XD = torch.stack(means).flatten(0, 1)
    result = {f"{name}.weight": merged_XD[:, : weight_XD.shape[1]].to(weight_XD.dtype).contiguous()}
    if bias_X is not None:
        result[f"{name}.bias"] = merged_XD[:, -1].to(bias_X.dtype).contiguous()
    return result
