"""What the project wants to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqat.bench import attention, end_to_end_table, generation, memory, step_table
from sqat.bench.results import Result, Spread, Table

MEANT = {"device": "cpu", "model": "sqat-mm", "quick": False}  # settings


@dataclass(frozen=True)
class Target:
    """How many times better `name` is to be than each of `against`, in one table.

    `best` compares with the best of the named there; otherwise with each, and the smallest ratio counts.
    """

    what: str
    benchmark: str
    table: str
    name: str
    against: str  # a series, or the beginning of several names
    wanted: float
    share: bool = False  # the ratio, over H/Hq


@dataclass(frozen=True)
class Outcome:
    """A target and what came of it; `measured` is `None` where one side is missing."""

    target: Target
    measured: Spread | None

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.measured.median >= self.target.wanted

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.target), "measured": self.measured and self.measured._asdict(), "met": self.met}


def _targets() -> list[Target]:
    end, step, peak, one = end_to_end_table.END_TO_END, step_table.STEP, memory.PEAK, generation.ONE
    found = [
        Target(
            "`sqat train` against the card's snippet on rxlm",
            "training",
            end,
            end_to_end_table.SQAT,
            end_to_end_table.RXLM,
            4.5,
        ),
        Target(
            "the card's snippet, ours against rxlm",
            "training",
            end,
            end_to_end_table.OUR_SNIPPET,
            end_to_end_table.RXLM,
            2.5,
        ),
        Target("training step against transformers' best", "training", step, step_table.OURS, "transformers ", 2.5),
        Target(
            "peak memory of training, against rxlm",
            "memory",
            peak,
            end_to_end_table.SQAT,
            end_to_end_table.RXLM,
            1 / 0.6,
        ),
        Target(
            "peak memory of training, against transformers' best",
            "memory",
            peak,
            end_to_end_table.SQAT,
            "transformers ",
            1 / 0.6,
        ),
        Target("one stream against transformers", "generation", one, generation.GREEDY, generation.TRANSFORMERS, 9),
        Target("one stream against rxlm", "generation", one, generation.SAMPLED, generation.RXLM, 35),
    ]
    for length in (4096, 16384):
        for variant in ("sqa", "ssqa", "xsqa"):
            title = attention.title(attention.BOTH, length)
            found.append(
                Target(
                    f"{variant}: share of H/Hq at {length:,}, both ways", "attention", title, variant, "mha", 0.9, True
                )
            )
    return found


def outcomes(results: Sequence[Result]) -> list[Outcome]:
    """Every target, with what these results say of it: those of the card's model at full size on a CPU, for which the
    targets are meant.
    """
    meant = [result for result in results if MEANT.items() <= {**MEANT, **result.settings}.items()]
    return [Outcome(target, _measured(target, meant)) for target in _targets()]


def _measured(target: Target, results: Sequence[Result]) -> Spread | None:
    table = next((r.table(target.table) for r in results if r.benchmark == target.benchmark), None)
    against = _strongest(table, target.against) if table else None
    ratios = table.ratios(target.name, against) if table and against else None
    if not ratios:
        return None
    series = table.find(target.name) if table else None
    ideal = series.figures["ideal"] if target.share and series else 1.0
    return Spread.of([ratio / ideal for ratio in ratios])


def _strongest(table: Table, name: str) -> str | None:
    """The series of that name, or the best of those whose name begins so, with their own allocator settings."""
    if table.find(name):
        return name
    peers = [series for series in table.series if series.name.startswith(name) and step_table.TUNED not in series.name]
    if not peers:
        return None
    pick = max if table.higher_is_better else min
    return pick(peers, key=lambda series: series.spread.median).name
