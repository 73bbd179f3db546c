"""This checkout of sqat beside another one: the same benchmarks without peers, in alternating pairs of processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.child import ROOT, child_environment
from benchmarks.harness.results import BenchError, Result, Series, Spread, Table
from benchmarks.harness.settings import Settings

from sqat.bench import environment


def compare_checkouts(names: Sequence[str], settings: Settings, other: Path) -> Iterator[Result]:
    """Yield each benchmark's result: all rows of this checkout, beside the same rows of the one in folder `other`.

    A round is one process of each, the order of the two changing from round to round. `other` must offer what
    `sqat.bench` offers here.
    """
    for name in names:
        start = time.monotonic()
        result = Result(name, settings=asdict(settings), environment=environment())
        try:
            pairs = []
            for round_ in range(settings.rounds):
                trees = (ROOT, other) if round_ % 2 else (other, ROOT)
                found = {tree: _measure(name, settings, tree) for tree in trees}
                pairs.append((found[ROOT], found[other]))
            result.tables = [_merged(title, pairs) for title in _titles(pairs)]
        except BenchError as error:
            result.error = str(error)
        result.seconds = time.monotonic() - start
        yield result


def _measure(name: str, settings: Settings, tree: Path) -> Result:
    """One round of a benchmark with the sqat of a checkout."""
    options = {"--device": settings.device, "--model": settings.model, "--data": settings.data}
    options |= {"--lengths": ",".join(map(str, settings.lengths))} if settings.lengths else {}
    command = [sys.executable, "-m", "benchmarks.harness", name, "--rounds", "1", "--no-peers", "--json"]
    command += [part for option in options.items() for part in option]
    command += ["--quick"] * settings.quick + ["--compiled" if settings.compiled else "--no-compiled"]
    environment = child_environment(tree / "src")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    except (IndexError, ValueError) as error:
        lines = done.stderr.strip().splitlines()
        raise BenchError(f"{name} failed in {tree}: {lines[-1] if lines else 'no output'}") from error
    if result["error"]:
        raise BenchError(f"{name} failed in {tree}: {result['error']}")
    return Result.from_dict(result)


Pairs = list[tuple[Result, Result]]  # this checkout's result and the other's, for each round


def _titles(pairs: Pairs) -> list[str]:
    return [table.title for table in pairs[0][0].tables if table.title not in ("key/value cache", "peers")]


def _merged(title: str, pairs: Pairs) -> Table:
    """The rows that both have: our values, the other's median, and how many times better ours are within each pair."""
    tables = [(ours.table(title), theirs.table(title)) for ours, theirs in pairs]
    ours = tables[0][0]
    assert ours is not None
    merged = Table(title, ours.unit, higher_is_better=ours.higher_is_better)
    for row in [series.name for series in ours.series]:
        both = [(_value(a, row), _value(b, row)) for a, b in tables]
        values = [(a, b) for a, b in both if a is not None and b is not None]
        if values:
            ratio = Spread.of([a / b if merged.higher_is_better else b / a for a, b in values])
            figures = {"other": Spread.of([b for _, b in values]).median, "times better": ratio.median}
            figures |= {"least": ratio.low, "most": ratio.high}
            merged.series.append(Series(row, [a for a, _ in values], figures))
        else:
            merged.skipped[row] = "one of the checkouts has no such row"
    for side in tables[0]:
        merged.failed |= side.failed if side else {}
    return merged


def _value(table: Any, row: str) -> float | None:
    series = table.find(row) if table else None
    return series.values[0] if series else None
