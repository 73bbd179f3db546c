"""From a plan's budget to the steps of every variant, and to their sizes where parameters are to match."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqat.compare.plan import ComparePlan, Variant
from sqat.cost import flops_per_token, parameters
from sqat.errors import ConfigError

TRAINING = 3  # a training step's operations over those of the forward pass


class Share(NamedTuple):
    """What one variant gets."""

    variant: Variant
    steps: int


def training_flops_per_token(variant: Variant) -> float:
    """Floating-point operations, forward and backward."""
    return float(TRAINING * flops_per_token(variant.model).total)


def shares(
    plan: ComparePlan, steps_per_epoch: int, tokens_per_step: float, step_seconds: Mapping[str, Sequence[float]]
) -> list[Share]:
    """Steps of every variant.

    Args:
        steps_per_epoch: of the data, the same for all.
        tokens_per_step: real targets in a step, on average.
        step_seconds: measured time of a step by variant, round by round; needed where `match` is "time".

    Raises:
        ConfigError: a budget too small for a single step.
    """
    variants = {variant.name: variant for variant in matched_sizes(plan)}
    reference = variants[plan.reference]
    given = plan.train.max_steps or math.ceil(steps_per_epoch * (plan.train.epochs or 1))
    if plan.match == "flops":
        cost = {name: training_flops_per_token(variant) * tokens_per_step for name, variant in variants.items()}
    elif plan.match == "time":
        cost = _relative_seconds(plan, step_seconds)
    else:
        cost = dict.fromkeys(variants, tokens_per_step if plan.match == "tokens" else 1.0)
    budget = given * cost[reference.name] if plan.budget is None or plan.match == "parameters" else plan.budget
    steps = {name: round(budget / cost[name]) for name in variants}
    for name, count in steps.items():
        if count < 1:
            raise ConfigError(
                f"ComparePlan.budget is {plan.budget:g} {plan.match}, but a step of {name} alone takes {cost[name]:.3g}"
            )
    return [Share(variant, steps[name]) for name, variant in variants.items()]


def _relative_seconds(plan: ComparePlan, step_seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of a step: the reference's median times the median of the ratios within rounds, which noise moves less."""
    base = step_seconds[plan.reference]
    return {
        name: statistics.median(base) * statistics.median([a / b for a, b in zip(seconds, base, strict=True)])
        for name, seconds in step_seconds.items()
    }


def matched_sizes(plan: ComparePlan) -> list[Variant]:
    """The variants; where parameters are to match, with the feed-forward's hidden width at which the total comes
    nearest to the reference's.
    """
    variants = plan.models()
    if plan.match != "parameters":
        return variants
    reference = next(variant for variant in variants if variant.name == plan.reference)
    wanted = parameters(reference.model).total
    return [_with_parameters(variant, wanted) for variant in variants]


def _with_parameters(variant: Variant, wanted: int) -> Variant:
    config = variant.model
    one_more = (
        parameters(config.replace(intermediate_size=config.intermediate_size + 1)).total - parameters(config).total
    )
    width = max(1, config.intermediate_size + round((wanted - parameters(config).total) / one_more))
    return Variant(variant.name, config.replace(intermediate_size=width))
