"""What the project wants to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.harness.results import Result, Spread, Table

from benchmarks.harness import attention, generation, training

MEANT = {"device": "cpu", "model": "sqat-mm", "quick": False}  # settings for which the targets hold


@dataclass(frozen=True)
class Target:
    """How many times better `name` is to be than `against`, in one table.

    `against` is a series, or the beginning of several names: then the best of them counts. `share` divides the ratio
    by the ideal one, H/Hq.
    """

    what: str
    benchmark: str
    table: str
    name: str
    against: str
    wanted: float
    share: bool = False


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured; `None` where one side is missing."""

    target: Target
    measured: Spread | None

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.measured.median >= self.target.wanted

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self.target), "measured": self.measured and self.measured._asdict(), "met": self.met}


def _targets() -> list[Target]:
    end, step, peak = (("training", training.END_TO_END), ("training", training.STEP), ("memory", training.PEAK))
    one = ("generation", generation.ONE)
    sqat, snippet, rxlm = training.SQAT, training.OUR_SNIPPET, training.RXLM
    memory, best = "peak memory of training, against", "transformers "
    found = [
        Target("`sqat train` against the card's snippet on rxlm", *end, sqat, rxlm, 4.5),
        Target("the card's snippet, ours against rxlm", *end, snippet, rxlm, 2.5),
        Target("training step against transformers' best", *step, training.OURS, best, 2.5),
        Target(f"{memory} rxlm", *peak, sqat, rxlm, 1 / 0.6),
        Target(f"{memory} transformers' best", *peak, sqat, best, 1 / 0.6),
        Target("one stream against transformers", *one, generation.GREEDY, generation.TRANSFORMERS, 9),
        Target("one stream against rxlm", *one, generation.SAMPLED, generation.RXLM, 35),
    ]
    for length in (4096, 16384):
        table = ("attention", attention.title(attention.BOTH, length))
        for variant in ("sqa", "ssqa", "xsqa"):
            what = f"{variant}: share of H/Hq at {length:,}, both ways"
            found.append(Target(what, *table, variant, "mha", 0.9, share=True))
    return found


def outcomes(results: Sequence[Result]) -> list[Outcome]:
    """Every target, measured by those results that are of the card's model at full size on a CPU."""
    meant = [result for result in results if MEANT.items() <= {**MEANT, **result.settings}.items()]
    return [Outcome(target, _measured(target, meant)) for target in _targets()]


def _measured(target: Target, results: Sequence[Result]) -> Spread | None:
    table = next((r.table(target.table) for r in results if r.benchmark == target.benchmark), None)
    against = _strongest(table, target.against) if table else None
    ratios = table.ratios(target.name, against) if table and against else None
    series = table.find(target.name) if table else None
    if not ratios or series is None:
        return None
    ideal = series.figures["ideal"] if target.share else 1.0
    return Spread.of([ratio / ideal for ratio in ratios])


def _strongest(table: Table, name: str) -> str | None:
    """The series of that name, or the best of those whose name begins so, with their own allocator settings."""
    if table.find(name):
        return name
    peers = [series for series in table.series if series.name.startswith(name) and training.TUNED not in series.name]
    if not peers:
        return None
    pick = max if table.higher_is_better else min
    return pick(peers, key=lambda series: series.spread.median).name
