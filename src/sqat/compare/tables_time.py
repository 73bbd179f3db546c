"""The report's tables of the timing pass."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from sqat.compare.card_figures import Figures, published
from sqat.compare.results import Comparison
from sqat.compare.statistics import median_interval
from sqat.compare.text_table import TextTable

_KERNELS = (
    "on CPUs a loop of ours computes rows of up to 1,024 tokens that are trained on (not with global tokens), torch's "
    "kernel all others, block by block under a window"
)


def speed(comparison: Comparison) -> TextTable | None:
    """Medians, and ratios taken round by round."""
    timing, reference = comparison.timing, comparison.plan.reference
    if timing is None:
        return None
    theirs = published(comparison.plan)
    ratios, rows = comparison.time_ratios("step_seconds"), []
    for name, entry in timing["variants"].items():
        own = list(ratios.get(name, {}).values())
        prompt = entry["prompt_tokens"] / statistics.median(entry["prompt_seconds"])
        row = [
            name,
            f"{statistics.median(entry['step_seconds']):.3f}",
            "{:.3f} [{:.3f} … {:.3f}]".format(statistics.median(own), *median_interval(own)) if own else "–",
            f"{statistics.median(entry['evaluate_seconds']):.3f}",
            f"{prompt:,.0f}",
            f"{1 / statistics.median(entry['decode_seconds_per_token']):,.0f}",
        ]
        rows.append(row + ([_their_time(theirs.figures, name, reference)] if theirs else []))
    place = timing["environment"]
    notes = [
        f"{_count(timing['rounds'], 'round')}, every variant in turn; batches of {timing['batch_size']} × "
        f"{timing['context']}; {place.get('gpu') or place.get('cpu')}, {_count(place.get('threads'), 'thread')}; "
        f"revision {place.get('revision')}, mean load of the minute before: {_load(place)}",
        "medians; steps are taken in turn, and the ratio has the 95 % interval of its median (of fewer than six: their "
        "range). Wall clocks of training runs are not compared",
        "forward: the same batch to the last layer, without head or gradient",
    ]
    columns = ["variant", "training step, s", f"against {reference}", "forward, s"]
    columns += ["prompt, tokens/s", "decoding, tokens/s"]
    if theirs:
        columns.append(f"{theirs.whose} minutes, against {reference}")
        notes.append(f"{theirs.whose} minutes: {theirs.how}")
    return TextTable("Time", columns, rows, notes)


def _load(place: Mapping[str, Any]) -> str:
    return f"{place['load'][0]:.1f}" if place.get("load") else "unknown"


def _count(number: Any, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _their_time(figures: Mapping[str, Figures], name: str, reference: str) -> str:
    if name not in figures:
        return "–"
    minutes = figures[name].minutes
    return f"{minutes} ({minutes / figures[reference].minutes:.3f})" if reference in figures else str(minutes)


def attention(comparison: Comparison, series: int) -> TextTable | None:
    """Attention alone; `series` is 0 for the forward pass without gradient, 1 for forward and backward."""
    timing = comparison.timing
    if timing is None or not next(iter(timing["variants"].values()))["attention"]:
        return None
    lengths = list(next(iter(timing["variants"].values()))["attention"])
    base = timing["variants"].get(comparison.plan.reference, {}).get("attention")
    rows = [
        [name, *(_milliseconds(entry["attention"][at][series], base and base[at][series]) for at in lengths)]
        for name, entry in timing["variants"].items()
    ]
    columns = ["variant", *(f"{int(length):,} tokens" for length in lengths)]
    notes = ["the same number of tokens at all lengths", _KERNELS]
    if base:
        notes.append(
            f"median; in brackets how many times as fast as {comparison.plan.reference}, median of the rounds' ratios"
        )
    return TextTable(f"Attention alone, {('forward', 'forward and backward')[series]}, ms", columns, rows, notes)


def _milliseconds(times: list[float], base: list[float] | None) -> str:
    text = f"{1000 * statistics.median(times):.1f}"
    if base is None:
        return text
    return f"{text} ({statistics.median([a / b for a, b in zip(base, times, strict=True)]):.2f})"
