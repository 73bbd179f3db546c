"""A model with fewer heads out of a model with more: the arithmetic on attention tensors.

Shape letters: H query heads, C head_dim, D hidden size; X several of these flattened.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sqat.convert.architectures import Heads, heads_of
from sqat.convert.heads import Groups, choose_heads, require_planned_for
from sqat.convert.modeling_mixed_heads import CLASSES
from sqat.convert.plan import ConversionPlan

Tensors = dict[str, Tensor]


def convert(
    model: PreTrainedModel,
    plan: ConversionPlan,
    calibration: Tensor | None = None,
    *,
    groups: Sequence[Groups] | None = None,
) -> PreTrainedModel:
    """Make a new model with the plan's heads; `model` itself does not change, nor do layers that keep their heads.

    Args:
        model: a causal language model of the plan's configuration.
        plan: from :func:`sqat.convert.plan_conversion`.
        calibration: (rows, tokens) int64 token ids; only needed if `plan.needs_calibration`.
        groups: from :func:`sqat.convert.choose_heads` for this plan, if already known.

    Returns:
        A model of the same class or, with a plan to "transformers", of its twin with heads for each layer
        (:mod:`sqat.convert.modeling_mixed_heads`).

    Raises:
        ConfigError: the plan is for another model; calibration text is missing, or not made of the model's token ids.
    """
    old = heads_of(plan.config)
    require_planned_for(model, plan)
    groups = choose_heads(model, plan, calibration) if groups is None else groups
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer, (merged, new) in enumerate(zip(groups, plan.heads, strict=True)):
        if new == old:
            continue
        prefix = f"model.layers.{layer}.self_attn."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tensors |= {prefix + name: tensor for name, tensor in merge_attention(own, merged, old, new).items()}
    kind: Any = type(model) if plan.to == "stock" else CLASSES[plan.new_config.model_type][2]
    result: PreTrainedModel = kind.from_pretrained(None, config=plan.new_config, state_dict=tensors, dtype=model.dtype)
    result.generation_config = copy.deepcopy(model.generation_config)
    return result.to(model.device).eval()


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
    result, size = dict(tensors), heads.kv // new.kv
    pools = [tuple(range(start, start + size)) for start in range(0, heads.kv, size)]
    for name, merged in (("q_proj", groups), ("k_proj", pools), ("v_proj", pools)):
        normalised = name.replace("_proj", "_norm") + ".weight" in tensors
        result |= _averaged(tensors, name, merged, heads.head_dim, equalise=normalised)
    weight_DX = tensors["o_proj.weight"]
    columns_HDC = weight_DX.float().unflatten(1, (heads.query, heads.head_dim)).transpose(0, 1)
    summed_HDC = torch.stack([columns_HDC[list(group)].sum(dim=0) for group in groups])
    result["o_proj.weight"] = summed_HDC.transpose(0, 1).flatten(1).to(weight_DX.dtype).contiguous()
    return result


def _averaged(tensors: Mapping[str, Tensor], name: str, groups: Groups, head_dim: int, *, equalise: bool) -> Tensors:
    weight_XD = tensors[f"{name}.weight"]
    bias_X = tensors.get(f"{name}.bias")
    rows_XD = weight_XD.float()
    if bias_X is not None:  # one more column, which the input multiplies by one
        rows_XD = torch.cat((rows_XD, bias_X.float().unsqueeze(1)), dim=1)
    rows_HCD, means = rows_XD.unflatten(0, (-1, head_dim)), []
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
