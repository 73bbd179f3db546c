"""A model with fewer heads out of a model with more."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sqat.convert.architectures import Heads, attention_layers, attention_prefix, heads_by_layer, heads_of
from sqat.convert.arguments import require_groups, require_rows
from sqat.convert.heads import ActivationObserver, Groups, Observed, group_heads, observe_weights
from sqat.convert.merge import merge_attention
from sqat.convert.modeling_mixed_heads import CLASSES
from sqat.convert.plan import ConversionPlan
from sqat.errors import ConfigError

BATCH_TOKENS = 4096  # of calibration text at a time


def convert(
    model: PreTrainedModel,
    plan: ConversionPlan,
    calibration: Tensor | None = None,
    *,
    groups: Sequence[Groups] | None = None,
) -> PreTrainedModel:
    """A new model with the plan's heads, of the same class or, by plan, of its twin with heads of each layer's own
    (:mod:`sqat.convert.modeling_mixed_heads`). `model` stays as it is, and so do layers that keep their heads.

    Args:
        model: a causal language model whose configuration the plan was made for.
        plan: of :func:`plan_conversion`.
        calibration: (rows, tokens) int64 token ids, where `plan.needs_calibration`.
        groups: of :func:`choose_heads`, if already known.

    Raises:
        ConfigError: the plan is of another model, or needs calibration text that is not given; calibration that is no
            rows of the model's token ids; groups that are not the plan's.
    """
    old = heads_of(plan.config)
    if groups is None:
        groups = choose_heads(model, plan, calibration)
    else:
        _require_planned_for(model, plan)
        require_groups(groups, old, plan.heads)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer, (merged, new) in enumerate(zip(groups, plan.heads, strict=True)):
        if new == old:
            continue
        prefix = attention_prefix(layer)
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tensors |= {prefix + name: tensor for name, tensor in merge_attention(own, merged, old, new).items()}
    kind: Any = type(model) if plan.to == "stock" else CLASSES[plan.new_config.model_type][2]
    result: PreTrainedModel = kind.from_pretrained(None, config=plan.new_config, state_dict=tensors, dtype=model.dtype)
    result.generation_config = copy.deepcopy(model.generation_config)
    return result.to(model.device).eval()


def choose_heads(model: PreTrainedModel, plan: ConversionPlan, calibration: Tensor | None = None) -> list[Groups]:
    """For every layer, for each head of the result, the heads that it is made of. Arguments and errors as
    :func:`convert`.
    """
    old = heads_of(plan.config)
    _require_planned_for(model, plan)
    if plan.needs_calibration:
        if calibration is None:
            raise ConfigError(
                f'calibration is None, but method "{plan.method}" by score "activation" needs text (--calibrate '
                'DATA[:n]); score "norm" does without'
            )
        require_rows(calibration, "calibration", plan.config.vocab_size, least=1)
        observed: list[Observed | None] = [*_observe(model, old, calibration)]
    elif plan.method == "mean":
        observed = [None] * plan.config.num_hidden_layers
    else:
        observed = [observe_weights(attention, old) for attention in attention_layers(model)]
    return [group_heads(plan.method, old, new, layer) for new, layer in zip(plan.heads, observed, strict=True)]


def _require_planned_for(model: PreTrainedModel, plan: ConversionPlan) -> None:
    planned, own = heads_by_layer(plan.config), heads_by_layer(model.config)
    if (type(model.config), own) != (type(plan.config), planned):
        raise ConfigError(
            f"the plan is for {plan.config.model_type} with {len(planned)} layers of {heads_of(plan.config)}, but the "
            f"model is {model.config.model_type} with {len(own)} of {heads_of(model.config)}: plan for its own "
            "configuration"
        )


@torch.no_grad()
def _observe(model: PreTrainedModel, heads: Heads, calibration: Tensor) -> list[Observed]:
    was_training = model.training
    model.eval()
    observers = [ActivationObserver(attention, heads) for attention in attention_layers(model)]
    try:
        for rows in calibration.split(max(1, BATCH_TOKENS // calibration.shape[1])):
            model.get_decoder()(input_ids=rows.to(model.device), use_cache=False)
    finally:
        for observer in observers:
            observer.hook.remove()
        model.train(was_training)
    return [observer.observed() for observer in observers]
