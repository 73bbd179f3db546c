"""A comparison's raw data, read back and checked."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqat.compare.budget import matched_sizes
from sqat.compare.folder import Folder, read_lines
from sqat.compare.plan import ComparePlan
from sqat.compare.timing_pass import read_timing
from sqat.config import ModelConfig
from sqat.errors import DataError
from sqat.untrusted import parse_json

NEEDED = ("variant", "seed", "model", "parameters", "evaluation", "curve", "steps", "tokens", "flops", "peak_bytes")


@dataclass(frozen=True)
class Comparison:
    """What a folder holds: the plan, a line for each finished run, the timing pass if it was made."""

    plan: ComparePlan
    runs: list[dict[str, Any]]
    timing: dict[str, Any] | None

    @property
    def variants(self) -> list[str]:
        """Those with a finished run, in the plan's order; all where none has one, and only time is reported."""
        done = {run["variant"] for run in self.runs}
        return [variant.name for variant in self.plan.models() if variant.name in done or not done]

    @property
    def models(self) -> dict[str, ModelConfig]:
        """Their sizes: as they were trained, or as they would be."""
        found = {variant.name: variant.model for variant in matched_sizes(self.plan)}
        found |= {run["variant"]: ModelConfig.from_dict(run["model"]) for run in self.runs}
        return {name: found[name] for name in self.variants}

    def of(self, variant: str) -> list[dict[str, Any]]:
        return [run for run in self.runs if run["variant"] == variant]

    def by_seed(self, *path: str) -> dict[str, dict[int, float]]:
        """A figure by variant and seed, as `by_seed("evaluation", "loss")`; runs that lack it are left out."""
        found: dict[str, dict[int, float]] = {name: {} for name in self.variants}
        for run in self.runs:
            value: Any = run
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found[run["variant"]][run["seed"]] = value
        return {name: values for name, values in found.items() if values}

    def missing(self) -> list[str]:
        """Runs of the plan that are not done."""
        done = {(run["variant"], run["seed"]) for run in self.runs}
        return [
            f"{variant.name}, seed {seed}"
            for variant in self.plan.models()
            for seed in self.plan.seeds
            if (variant.name, seed) not in done
        ]

    def time_ratios(self, figure: str) -> dict[str, dict[int, float]]:
        """A timed figure over the reference's, by variant and round."""
        if self.timing is None or self.plan.reference not in self.timing["variants"]:
            return {}
        base = self.timing["variants"][self.plan.reference][figure]
        return {
            name: {i: a / b for i, (a, b) in enumerate(zip(entry[figure], base, strict=False))}
            for name, entry in self.timing["variants"].items()
        }

    def time_median(self, variant: str, figure: str) -> float | None:
        if self.timing is None or variant not in self.timing["variants"]:
            return None
        return statistics.median(self.timing["variants"][variant][figure])


def read_comparison(out: Path) -> Comparison:
    """Everything in a comparison's folder.

    Raises:
        ConfigError, DataError: missing or damaged; the message names file and line.
    """
    runs, timing = _read_runs(out / Folder.RESULTS), read_timing(out)
    if not runs and timing is None:
        raise DataError(
            f"{out} has no finished run to report on and no timing pass ({Folder.RESULTS}, {Folder.TIMING}): "
            "it is not a comparison's folder, or nothing is done yet"
        )
    return Comparison(Folder(out).read_plan(), runs, timing)


def _read_runs(path: Path) -> list[dict[str, Any]]:
    runs = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            run = parse_json(line, finite=False)
            lacking = [key for key in NEEDED if key not in run]
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is damaged: {error}") from error
        if lacking:
            raise DataError(f"{path}, line {number} lacks {', '.join(lacking)}")
        runs.append(run)
    return runs
