"""One attention layer with fewer heads: the arithmetic on its tensors.

Shape letters: H query heads, G key/value heads, C head_dim, D hidden size.
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
    - Where every query (key) is normalised after its projection, its rows' size means nothing, and rows are brought to
      their mean size before they are averaged, so that no head outweighs another. The norms themselves are shared by
      the heads of a layer, and stay; so does an output bias.

    Sums are taken in float32 and rounded once.
    """
    result = dict(tensors)
    for name, merged in (("q_proj", groups), ("k_proj", _pools(heads, new)), ("v_proj", _pools(heads, new))):
        norm = name.replace("_proj", "_norm") + ".weight"
        result |= _averaged(tensors, name, merged, heads.head_dim, equalise=norm in tensors)
    weight_DX = tensors["o_proj.weight"]
    columns_HDC = weight_DX.float().unflatten(1, (heads.query, heads.head_dim)).transpose(0, 1)
    summed_HDC = torch.stack([columns_HDC[list(group)].sum(dim=0) for group in groups])
    result["o_proj.weight"] = summed_HDC.transpose(0, 1).flatten(1).to(weight_DX.dtype).contiguous()
    return result


def _pools(heads: Heads, new: Heads) -> Groups:
    """For each new key/value head, the neighbours that it is the mean of."""
    size = heads.kv // new.kv
    return [tuple(range(start, start + size)) for start in range(0, heads.kv, size)]


def _averaged(tensors: Mapping[str, Tensor], name: str, groups: Groups, head_dim: int, *, equalise: bool) -> Tensors:
    weight_XD = tensors[f"{name}.weight"]
    bias_X = tensors.get(f"{name}.bias")
    rows_XD = weight_XD.float()
    if bias_X is not None:  # one more column, which the input multiplies by one
        rows_XD = torch.cat((rows_XD, bias_X.float().unsqueeze(1)), dim=1)
    rows_HCD = rows_XD.unflatten(0, (-1, head_dim))
    merged = torch.stack([_mean(rows_HCD[list(group)], equalise) for group in groups]).flatten(0, 1)
    result = {f"{name}.weight": merged[:, : weight_XD.shape[1]].to(weight_XD.dtype).contiguous()}
    if bias_X is not None:
        result[f"{name}.bias"] = merged[:, -1].to(bias_X.dtype).contiguous()
    return result


def _mean(rows_HCD: Tensor, equalise: bool) -> Tensor:
    if equalise:
        size_H = rows_HCD.flatten(1).norm(dim=1).clamp(min=1e-30)
        rows_HCD = rows_HCD * (size_H.mean() / size_H)[:, None, None]
    return rows_HCD.mean(dim=0)
