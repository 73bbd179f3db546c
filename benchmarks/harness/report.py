"""Results for people, in the terminal and as Markdown, and for machines, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import Result, Spread, Table
from benchmarks.harness.targets import Outcome
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sqat.cli.bench import NOISY
from sqat.durable import replace_file

SUMMARY_FILE = "summary.md"
TARGETS_FILE = "targets.json"

Rows = list[list[str]]


def number(value: float) -> str:
    """Three significant digits, thousands set apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(values: Spread, suffix: str = "") -> str:
    """Median [smallest … largest]."""
    if values.low == values.high:
        return f"{number(values.median)}{suffix}"
    noisy = ", noisy" if suffix == "×" and values.high > NOISY * values.low else ""
    return f"{number(values.median)}{suffix} [{number(values.low)} … {number(values.high)}{noisy}]"


def cells(table: Table) -> Rows:
    """Headings and rows as text: name, value, how many times better than the baseline, further figures."""
    figures = list(dict.fromkeys(key for series in table.series for key in series.figures))
    compared = table.baseline is not None and table.find(table.baseline) is not None
    rows = [["", table.unit, *([f"against {table.baseline}"] if compared else []), *figures]]
    for series in table.series:
        row = [series.name, spread(series.spread)]
        if compared:
            ratios = table.ratios(series.name, str(table.baseline)) or []
            row.append(spread(Spread.of(ratios), "×") if ratios and series.name != table.baseline else "")
        rows.append(row + [number(series.figures[key]) if key in series.figures else "" for key in figures])
    return rows


def target_cells(outcomes: Sequence[Outcome]) -> Rows:
    """The targets as headings and rows."""
    words = {True: "met", False: "not met", None: "not measured"}
    rows = [["target", "wanted", "measured", ""]]
    for outcome in outcomes:
        unit = "" if outcome.target.share else "×"
        measured = spread(outcome.measured, unit) if outcome.measured else ""
        rows.append([outcome.target.what, f"{outcome.target.wanted:.3g}{unit}", measured, words[outcome.met]])
    return rows


def remarks(table: Table) -> list[str]:
    """What a reader must know beside the numbers."""
    failed = [f"failed: {name}: {why}" for name, why in table.failed.items()]
    return [*table.notes, *(f"not measured: {name}: {why}" for name, why in table.skipped.items()), *failed]


def print_result(console: Console, result: Result) -> None:
    """All tables of one benchmark."""
    console.print(f"\n[bold]{result.benchmark}[/bold] ({result.seconds:.0f} s)", highlight=False)
    for table in result.tables:
        if table.series:
            console.print(_rich(table.title, cells(table)))
        for line in remarks(table):
            console.print(f"  {line}", style="dim", highlight=False, markup=False)
    for peer, how in result.absent.items():
        console.print(f"  absent: {peer}: {how}", highlight=False, markup=False)
    if result.error:
        console.print(f"  failed: {result.error}", style="red", highlight=False, markup=False)


def print_targets(console: Console, outcomes: Sequence[Outcome]) -> None:
    console.print(_rich("targets", target_cells(outcomes)))


def _rich(title: str, rows: Rows) -> RichTable:
    table = RichTable(title=title, title_justify="left", title_style="italic", box=None, padding=(0, 2, 0, 0))
    for index, heading in enumerate(rows[0]):
        table.add_column(Text(heading), justify="left" if index == 0 else "right")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def markdown(results: Sequence[Result], outcomes: Sequence[Outcome], command: str) -> str:
    """The whole run as a page."""
    lines = ["# Benchmarks", "", f"`{command}`", ""]
    if results:
        lines += [_machine(results[0].environment), ""]
    if any(outcome.measured for outcome in outcomes):
        lines += ["## Targets", "", *_markdown_table(target_cells(outcomes)), ""]
    for result in results:
        lines += [f"## {result.benchmark}", ""]
        for table in result.tables:
            lines += [f"### {table.title}", ""]
            lines += [*_markdown_table(cells(table)), ""] if table.series else []
            lines += [*(f"- {line}" for line in remarks(table)), ""] if remarks(table) else []
        lines += [f"absent: {peer}: {how}\n" for peer, how in result.absent.items()]
        lines += [f"failed: {result.error}\n"] if result.error else []
    return "\n".join(lines)


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    machine = f"{found['cpu']}, {found['usable_cores']} cores" + (f", {found['gpu']}" if found["gpu"] else "")
    return f"{found['date']}, revision {found['revision']}, Python {found['python']}, {versions}; {machine}."


def _markdown_table(rows: Rows) -> list[str]:
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [body[0], "|---" + "|--:" * (len(rows[0]) - 1) + "|", *body[1:]]


def write_result(folder: Path, result: Result) -> None:
    """One benchmark as `BENCHMARK.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{result.benchmark}.json", json.dumps(result.to_dict(), indent=1))


def write_summary(folder: Path, results: Sequence[Result], outcomes: Sequence[Outcome], command: str) -> None:
    """The page for people, and the targets."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / SUMMARY_FILE, markdown(results, outcomes, command))
    replace_file(folder / TARGETS_FILE, json.dumps([outcome.to_dict() for outcome in outcomes], indent=1))
