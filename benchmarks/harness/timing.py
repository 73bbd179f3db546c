"""Alternating measurement: A B C, A B C, ..., so that a disturbance of the machine falls on all candidates alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.harness.results import NotMeasured, Series, Table

from sqat.bench import synchronize

OUT_OF_TIME = "the time budget was used up before its turn"


class Sample(NamedTuple):
    """One measurement of a candidate: the value compared, and what else was measured."""

    value: float
    figures: Mapping[str, float] = {}


Candidate = Callable[[], Sample]


def alternate(
    table: Table, candidates: Mapping[str, Candidate], *, rounds: int, warmup: bool = True, deadline: float = math.inf
) -> Table:
    """Run the candidates in turn, `rounds` times, and add their series to `table`.

    Args:
        candidates: by name. One that raises is taken out and listed in the table with its error.
        rounds: how often each runs.
        warmup: run each once before; this does not count, but its "seconds", if any, become "first call, s".
        deadline: on the clock of `time.monotonic`; nothing starts after it.
    """
    left = dict(candidates)
    samples: dict[str, list[Sample]] = {name: [] for name in left}
    first: dict[str, float] = {}
    for round_ in range(-1 if warmup else 0, rounds):
        for name in list(left):
            if time.monotonic() > deadline:
                break
            sample = _attempt(table, name, left[name])
            if sample is None:
                del left[name], samples[name]
            elif round_ < 0:
                first |= {name: sample.figures["seconds"]} if "seconds" in sample.figures else {}
            else:
                samples[name].append(sample)
    for name, found in samples.items():
        if found:
            figures = {"first call, s": first[name]} if name in first else {}
            figures |= {key: statistics.median(sample.figures[key] for sample in found) for key in found[0].figures}
            table.series.append(Series(name, [sample.value for sample in found], figures))
        else:
            table.skipped[name] = OUT_OF_TIME
    return table


def _attempt(table: Table, name: str, candidate: Candidate) -> Sample | None:
    try:
        return candidate()
    except NotMeasured as reason:
        table.skipped[name] = str(reason)
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way; the others are still measured
        table.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    gc.collect()
    return None


class Stopwatch:
    """A candidate that times a function: seconds of one call, averaged over at least `least_seconds` of calls.

    The first measurement, which should be the warm-up, decides how many calls that takes.
    """

    def __init__(self, function: Callable[[], Any], device: str = "cpu", least_seconds: float = 0.0) -> None:
        self.function, self.device, self.least_seconds = function, device, least_seconds
        self.calls: int | None = None

    def __call__(self) -> Sample:
        if self.calls is None:
            first = self._seconds(1)
            self.calls = max(1, math.ceil(self.least_seconds / max(first, 1e-9)))
            if self.calls > 1:  # the first call may have been far slower than the next
                self.calls = max(1, math.ceil(self.least_seconds / max(self._seconds(1), 1e-9)))
            return Sample(first)
        return Sample(self._seconds(self.calls))

    def _seconds(self, calls: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            self.function()
        synchronize(self.device)
        return (time.perf_counter() - start) / calls
