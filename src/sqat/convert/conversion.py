"""A pretrained model with fewer query heads: which heads stay, and the model that has them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from sqat.convert.architectures import attention_layers, attention_names, heads_of, output_name
from sqat.convert.fit import Progress, fit_heads
from sqat.convert.heads import (
    LayerHeads,
    group_heads,
    observe_activations,
    observe_weights,
    require_planned_for,
    require_token_ids,
)
from sqat.convert.merge import merge_attention
from sqat.convert.modeling_mixed_heads import CLASSES
from sqat.convert.plan import ConversionPlan
from sqat.errors import ConfigError


def choose_heads(
    model: PreTrainedModel, plan: ConversionPlan, calibration: Tensor | None = None, *, progress: Progress | None = None
) -> list[LayerHeads]:
    """For every layer, the heads that each head of the result is made of and, by the method "fit", the output
    projection fitted to them.

    Args:
        model: a causal language model of the plan's configuration; not changed.
        plan: from :func:`sqat.convert.plan_conversion`.
        calibration: (rows, tokens) int64 token ids; only needed if `plan.needs_calibration`.
        progress: called with the number of layers that are fitted, and of all.

    Raises:
        ConfigError: the plan is for another model; calibration text is missing, or not made of the model's token ids.
    """
    old = heads_of(plan.config)
    require_planned_for(model, plan)
    if plan.needs_calibration:
        if calibration is None:
            raise ConfigError(f"calibration is None, but {plan.calibration_reason}")
        require_token_ids(calibration, "calibration", plan.config.vocab_size, least=1)
        if plan.method == "fit":
            return fit_heads(model, plan, calibration, progress)
        observed = observe_activations(model, old, calibration)
    elif plan.method == "mean":
        observed = [None] * plan.config.num_hidden_layers
    else:
        observed = [attention and observe_weights(attention, old) for attention in attention_layers(model)]
    pairs = zip(plan.heads, observed, strict=True)
    return [LayerHeads(group_heads(plan.method, old, new, layer) if new.query else []) for new, layer in pairs]


def convert(
    model: PreTrainedModel,
    plan: ConversionPlan,
    calibration: Tensor | None = None,
    *,
    heads: Sequence[LayerHeads] | None = None,
) -> PreTrainedModel:
    """Make a new model with the plan's heads; `model` itself does not change, nor do layers that keep their heads.

    Args:
        model: a causal language model of the plan's configuration.
        plan: from :func:`sqat.convert.plan_conversion`.
        calibration: (rows, tokens) int64 token ids; only needed if `plan.needs_calibration`.
        heads: from :func:`sqat.convert.choose_heads` for this plan, if already known.

    Returns:
        A model of the same class or, with a plan to "transformers", of its twin with heads for each layer
        (:mod:`sqat.convert.modeling_mixed_heads`).

    Raises:
        ConfigError: the plan is for another model; calibration text is missing, or not made of the model's token ids.
    """
    old = heads_of(plan.config)
    require_planned_for(model, plan)
    heads = choose_heads(model, plan, calibration) if heads is None else heads
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kept, new, attention in zip(heads, plan.heads, attention_names(model), strict=True):
        if attention is None or new == old:
            continue
        prefix = f"{attention}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        fitted = {f"{output_name(own)}.{kind}": tensor for kind, tensor in kept.output.items()}
        merged = {**merge_attention(own, kept.groups, old, new), **fitted}
        tensors |= {prefix + name: tensor for name, tensor in merged.items()}
    kind: Any = type(model) if plan.to == "stock" else CLASSES[plan.new_config.model_type][2]
    result: PreTrainedModel = kind.from_pretrained(None, config=plan.new_config, state_dict=tensors, dtype=model.dtype)
    result.generation_config = copy.deepcopy(model.generation_config)
    return result.to(model.device).eval()
