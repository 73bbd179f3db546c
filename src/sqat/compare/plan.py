"""What a comparison is: variants, seeds, data, training and the budget they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqat.config import Config, ModelConfig, require, require_choice
from sqat.errors import ConfigError
from sqat.run_config import DataConfig, RunConfig, TrainConfig, read_yaml, with_overrides
from sqat.untrusted import shown
from sqat.variants import FAMILIES, head_counts

NAME = re.compile(r"\w[\w .+=-]*")
MATCHES = ("tokens", "flops", "time", "parameters")


@dataclass(frozen=True, kw_only=True)
class TimingPlan(Config):
    """The interleaved timing pass: every variant in turn, again and again.

    Raises:
        ConfigError: a field with an unusable value; the message names it.
    """

    rounds: int = 5  # how often every variant is measured; 0 leaves the pass out
    steps: int = 3  # training steps of each variant in a round, one in turn
    warmup: int = 6  # training steps before the first, which do not count: kernels are made for new shapes
    prompt_tokens: int = 1024  # of the prompt whose reading is timed
    new_tokens: int = 128  # decoded after it
    lengths: tuple[int, ...] = (256, 1024, 4096)  # at which attention alone is timed

    def __post_init__(self) -> None:
        require(self.rounds >= 0, self, "rounds", "at least 0")
        require(self.warmup >= 0, self, "warmup", "at least 0")
        for name in ("steps", "prompt_tokens", "new_tokens"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(all(length >= 1 for length in self.lengths), self, "lengths", "lengths of at least 1")


class Variant(NamedTuple):
    """One of the models compared."""

    name: str
    model: ModelConfig


@dataclass(frozen=True, kw_only=True)
class ComparePlan(Config):
    """A whole comparison. In YAML, `variants` is a list of names, or of `name: {variant: sqa, other field: value}`.

    Raises:
        ConfigError: a field with an unusable value; the message names it.
    """

    name: str
    family: str  # sizes: micro and mini are the card's, small and extra_small ours
    variants: tuple[Any, ...]
    reference: str  # the variant that others are compared with
    model: dict[str, Any] = field(default_factory=dict)  # fields that differ from the family's, in all variants
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    match: str = "tokens"  # what all variants get the same of
    budget: float | None = None  # how much of it; null: what `train` gives the reference
    seeds: tuple[int, ...] = (0, 1, 2)  # none: nothing is trained, only timed and counted
    processes: int = 1  # runs at a time, each with its share of the cores
    timing: TimingPlan = field(default_factory=TimingPlan)
    probes: int = 500  # recall probes at the end of each run; built-in stories only
    stories: int = 3  # written by each run's model

    def __post_init__(self) -> None:
        require_choice(self, "family", tuple(FAMILIES))
        require_choice(self, "match", MATCHES)
        require(len(self.variants) > 0, self, "variants", "a list of at least one")
        models = self.models()
        names = [variant.name for variant in models]
        for name in (self.name, *names):  # of folders
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
        right = "null where match is parameters: train.max_steps or train.epochs says how long"
        require(self.match != "parameters" or self.budget is None, self, "budget", right)
        right = "null in a comparison: budget, with match: tokens, says how many"
        require(self.train.max_tokens is None, self.train, "max_tokens", right)
        require(len(set(self.seeds)) == len(self.seeds), self, "seeds", "a list of different numbers")
        require(all(seed >= 0 for seed in self.seeds), self, "seeds", "numbers of at least 0")
        require(self.processes >= 1, self, "processes", "at least 1")
        for name in ("probes", "stories"):
            require(getattr(self, name) >= 0, self, name, "at least 0")
        right = "at least 1 where match is time, since the measured step time is the exchange rate"
        require(self.match != "time" or self.timing.rounds >= 1, self.timing, "rounds", right)
        right = "at least 1 where there are no seeds: nothing would be done"
        require(len(self.seeds) > 0 or self.timing.rounds >= 1, self.timing, "rounds", right)

    def models(self) -> list[Variant]:
        """Name and sizes of every variant, before any budget changes them."""
        return [_variant(entry, self.family, self.model) for entry in self.variants]

    def run_config(self, variant: Variant, seed: int, steps: int) -> RunConfig:
        """The run of one variant with one seed."""
        train = {**self.train.to_dict(), "seed": seed, "max_steps": steps}
        return RunConfig(model=variant.model, data=self.data, train=TrainConfig.from_dict(train))


def read_plan(path: str | Path, overrides: Iterable[str] = ()) -> ComparePlan:
    """The plan in a YAML file, with `a.b=c` assignments applied.

    Raises:
        ConfigError: unreadable, or not a plan; the message says what would be right.
    """
    return ComparePlan.from_dict(with_overrides(read_yaml(path), overrides))


def _variant(entry: Any, family: str, changes: Mapping[str, Any]) -> Variant:
    """From "sqa", or {"sw-sqa": {"variant": "sqa", "window": 64}}."""
    if isinstance(entry, str):
        name, own = entry, {"variant": entry}
    elif isinstance(entry, Mapping) and len(entry) == 1 and isinstance(next(iter(entry.values())), Mapping):
        name, own = next((str(name), dict(fields)) for name, fields in entry.items())
    else:
        raise ConfigError(
            f"ComparePlan.variants holds {entry!r}, but must hold names, or name: {{variant: …, field: …}}"
        )
    variant = str(own.pop("variant", name))
    model = ModelConfig.from_dict({**FAMILIES[family](variant).to_dict(), **changes, **own})
    if not {"num_query_heads", "num_kv_heads"} & {*changes, *own} and {"hidden_size", "head_dim"} & {*changes, *own}:
        query, kv = head_counts(variant, model.hidden_size // model.head_dim)
        model = model.replace(num_query_heads=query, num_kv_heads=kv)
    return Variant(name, model)
