"""A table of a report, as text, and how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from sqat.compare.statistics import Summary, summarise


class TextTable(NamedTuple):
    """A heading, columns, rows (the first cell names the row), and what a reader must know."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def interval(values: Mapping[int, float] | None, *, percent: bool = False, digits: int = 4) -> str:
    """Mean ± half of its interval (standard deviation), of a figure by seed; per cent have two digits."""
    if not values:
        return "–"
    scale, digits, unit = (100, 2, " %") if percent else (1, digits, "")
    summary = summarise([scale * value for value in values.values()])
    if math.isinf(summary.half):
        return f"{summary.mean:.{digits}f}{unit}"
    return f"{summary.mean:.{digits}f} ± {summary.half:.{digits}f}{unit} ({summary.deviation:.{digits}f})"


def signed(summary: Summary, *, percent: bool = False) -> str:
    """A difference ± half of its interval."""
    scale, digits, unit = (100, 2, " points") if percent else (1, 4, "")
    half = "" if math.isinf(summary.half) else f" ± {scale * summary.half:.{digits}f}"
    return f"{scale * summary.mean:+.{digits}f}{half}{unit}"
