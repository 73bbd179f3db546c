"""What a benchmark found: values per round, and ratios taken within a round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class BenchError(RuntimeError):
    """A candidate failed; the report quotes the message."""


class NotMeasured(BenchError):
    """A candidate was left out on purpose, for lack of memory or time. That is no failure."""


class Spread(NamedTuple):
    """Median, smallest and largest of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Series:
    """One candidate: its value in every round, and medians of what else was measured."""

    name: str
    values: list[float]
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def spread(self) -> Spread:
        return Spread.of(self.values)


@dataclass
class Table:
    """Candidates measured side by side.

    Args:
        title: what was measured.
        unit: of the values.
        series: in the order in which they ran.
        higher_is_better: true for rates, false for seconds and bytes.
        baseline: the series that the others are compared with.
        failed: error messages of candidates that failed.
        skipped: why a candidate was not measured.
        notes: what a reader must know to interpret the values.
    """

    title: str
    unit: str
    series: list[Series] = field(default_factory=list)
    higher_is_better: bool = True
    baseline: str | None = None
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def find(self, name: str) -> Series | None:
        return next((series for series in self.series if series.name == name), None)

    def ratios(self, name: str, against: str) -> list[float] | None:
        """How many times better `name` did than `against`, round by round; `None` where one is missing."""
        ours, theirs = self.find(name), self.find(against)
        if ours is None or theirs is None:
            return None
        pairs = zip(ours.values, theirs.values, strict=False)  # time may have run out within a round
        return [a / b if self.higher_is_better else b / a for a, b in pairs]


@dataclass
class Result:
    """The tables of one benchmark, and how to install the peers that are missing."""

    benchmark: str
    tables: list[Table] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None  # what ended the benchmark early

    @property
    def failures(self) -> list[str]:
        """One line for each failure."""
        own = [f"{self.benchmark}: {self.error}"] if self.error else []
        return own + [f"{t.title}: {name}: {why}" for t in self.tables for name, why in t.failed.items()]

    def table(self, title: str) -> Table | None:
        return next((table for table in self.tables if table.title == title), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        tables = [Table(**{**t, "series": [Series(**s) for s in t["series"]]}) for t in values["tables"]]
        return cls(**{**values, "tables": tables})
