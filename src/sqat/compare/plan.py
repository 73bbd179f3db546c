"""What a comparison is: variants, seeds, data, training, and the budget that every variant gets."""

import math
import operator
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqat.config import Config, ModelConfig, require, require_choice
from sqat.cost import flops_per_token
from sqat.errors import ConfigError
from sqat.run_config import DataConfig, RunConfig, TrainConfig, read_yaml, with_overrides
from sqat.untrusted import shown
from sqat.variants import FAMILIES, head_counts, of_family

NAME = re.compile(r"\w[\w .+=-]*")  # of a plan or variant; it becomes the name of a folder
MATCHES = ("tokens", "flops", "time")
TRAINING = 3  # operations of a training step, as a multiple of those of its forward pass


@dataclass(frozen=True, kw_only=True)
class TimingPlan(Config):
    """How time is measured: every variant in turn, round after round.

    Raises:
        ConfigError: a field has an unusable value; the message names it.
    """

    rounds: int = 5  # how often every variant is measured; 0 measures nothing
    steps: int = 3  # training steps of each variant in a round, one in turn
    warmup: int = 6  # training steps before the first round, which do not count: kernels adapt to new shapes
    prompt_tokens: int = 1024  # length of the prompt whose reading is timed
    new_tokens: int = 128  # decoded after it
    lengths: tuple[int, ...] = (256, 1024, 4096)  # at which attention alone is timed

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("warmup", 0), ("steps", 1), ("prompt_tokens", 1), ("new_tokens", 1)):
            require(getattr(self, name) >= least, self, name, f"at least {least}")
        require(all(length >= 1 for length in self.lengths), self, "lengths", "lengths of at least 1")


class Variant(NamedTuple):
    """One of the models that are compared, and how long each of its runs trains."""

    name: str
    model: ModelConfig
    steps: int = 0  # 0 until the budget is settled


@dataclass(frozen=True, kw_only=True)
class ComparePlan(Config):
    """A whole comparison. In YAML, an entry of `variants` is a name, or `name: {variant: sqa, other field: value}`.

    Raises:
        ConfigError: a field has an unusable value; the message names it.
    """

    name: str
    family: str  # model sizes: micro and mini are the original's, small and extra_small ours
    variants: tuple[Any, ...]
    reference: str  # the variant that the others are compared with
    model: dict[str, Any] = field(default_factory=dict)  # fields that differ from the family's, in all variants
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    match: str = "tokens"  # what all variants get the same amount of
    budget: float | None = None  # that amount; null: what `train` gives the reference
    seeds: tuple[int, ...] = (0, 1, 2)  # none: nothing is trained, models are only timed and counted
    processes: int = 1  # runs at a time, each with its share of the cores
    timing: TimingPlan = field(default_factory=TimingPlan)
    probes: int = 500  # recall probes at the end of each run; for the built-in stories only
    stories: int = 3  # how many stories each trained model writes

    def __post_init__(self) -> None:
        require_choice(self, "family", tuple(FAMILIES))
        require_choice(self, "match", MATCHES)
        require(len(self.variants) > 0, self, "variants", "a list of at least one")
        models = self.models()
        names = [variant.name for variant in models]
        for name in (self.name, *names):
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"ComparePlan: the name {shown(name)} must be of letters, digits, spaces and - _ . + = alone"
                )
        for name in ("vocab_size", "context_length"):
            found = {variant.name: getattr(variant.model, name) for variant in models}
            require(len(set(found.values())) == 1, self, "variants", f"of one {name}, for the same batches: {found}")
        require(len(set(names)) == len(names), self, "variants", "a list of different names")
        require(self.reference in names, self, "reference", f"one of the variants: {', '.join(names)}")
        require(self.budget is None or self.budget > 0, self, "budget", "positive, or null for what train gives")
        right = "null in a comparison: budget, with match: tokens, says how many"
        require(self.train.max_tokens is None, self.train, "max_tokens", right)
        require(len(set(self.seeds)) == len(self.seeds), self, "seeds", "a list of different numbers")
        require(all(seed >= 0 for seed in self.seeds), self, "seeds", "numbers of at least 0")
        for name, least in (("processes", 1), ("probes", 0), ("stories", 0)):
            require(getattr(self, name) >= least, self, name, f"at least {least}")
        right = "at least 1 where match is time, since the measured step time is the exchange rate"
        require(self.match != "time" or self.timing.rounds >= 1, self.timing, "rounds", right)
        right = "at least 1 where there are no seeds: nothing would be done"
        require(len(self.seeds) > 0 or self.timing.rounds >= 1, self.timing, "rounds", right)

    def models(self) -> list[Variant]:
        """Every variant with its model, before the budget sets its steps."""
        return [_variant(entry, self.family, self.model) for entry in self.variants]

    def run_config(self, variant: Variant, seed: int) -> RunConfig:
        """The run of one variant with one seed."""
        train = {**self.train.to_dict(), "seed": seed, "max_steps": variant.steps}
        return RunConfig(model=variant.model, data=self.data, train=TrainConfig.from_dict(train))


def read_plan(path: str | Path, overrides: Iterable[str] = ()) -> ComparePlan:
    """Read a plan from a YAML file and apply `a.b=c` assignments to it.

    Raises:
        ConfigError: the file cannot be read, or is not a plan; the message says what would be right.
    """
    return ComparePlan.from_dict(with_overrides(read_yaml(path), overrides))


def training_flops_per_token(model: ModelConfig) -> float:
    """Floating-point operations of one training token, forward and backward."""
    return float(TRAINING * flops_per_token(model).total)


def share_budget(
    plan: ComparePlan, steps_per_epoch: int, tokens_per_step: float, step_seconds: Mapping[str, Sequence[float]]
) -> list[Variant]:
    """The variants, each with the steps that its share of the budget pays for.

    Args:
        plan: the comparison; its `match` says what all variants get the same amount of.
        steps_per_epoch: steps in one pass over the data.
        tokens_per_step: targets in a step, padding left out, on average.
        step_seconds: measured seconds of a step by variant, round by round; only needed with `match: time`.

    Raises:
        ConfigError: the budget is too small for a single step.
    """
    variants = plan.models()
    if plan.match == "flops":
        cost = {name: training_flops_per_token(model) * tokens_per_step for name, model, _ in variants}
    elif plan.match == "time":
        # Ratios are taken within rounds, so that whatever slows the machine for a while slows both.
        base = step_seconds[plan.reference]
        ratios = {name: map(operator.truediv, seconds, base) for name, seconds in step_seconds.items()}
        cost = {name: statistics.median(base) * statistics.median(ratio) for name, ratio in ratios.items()}
    else:
        cost = dict.fromkeys((name for name, *_ in variants), tokens_per_step)
    budget = plan.budget
    if budget is None:
        steps = plan.train.max_steps or math.ceil(steps_per_epoch * (plan.train.epochs or 1))
        budget = steps * cost[plan.reference]
    shares = [variant._replace(steps=round(budget / cost[variant.name])) for variant in variants]
    for name, _, steps in shares:
        if steps < 1:
            raise ConfigError(
                f"ComparePlan.budget is {budget:g} {plan.match}, but a step of {name} alone takes {cost[name]:.3g}"
            )
    return shares


def _variant(entry: Any, family: str, changes: Mapping[str, Any]) -> Variant:
    """Read "sqa", or {"sw-sqa": {"variant": "sqa", "window": 64}}."""
    if isinstance(entry, str):
        name, own = entry, {"variant": entry}
    elif isinstance(entry, Mapping) and len(entry) == 1 and isinstance(next(iter(entry.values())), Mapping):
        name, own = next((str(name), dict(fields)) for name, fields in entry.items())
    else:
        raise ConfigError(
            f"ComparePlan.variants holds {entry!r}, but must hold names, or name: {{variant: …, field: …}}"
        )
    variant = str(own.pop("variant", name))
    model = ModelConfig.from_dict({**of_family(family, variant).to_dict(), **changes, **own})
    if not {"num_query_heads", "num_kv_heads"} & {*changes, *own} and {"hidden_size", "head_dim"} & {*changes, *own}:
        query, kv = head_counts(variant, model.hidden_size // model.head_dim)
        model = model.replace(num_query_heads=query, num_kv_heads=kv)
    return Variant(name, model)
