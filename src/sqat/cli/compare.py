"""`sqat compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    plan: Annotated[
        Path | None,
        typer.Argument(
            help="A YAML file; configs/compare, which comes with sqat, has examples. Not needed with --report-only."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The comparison's folder; default runs/NAME.")] = None,
    match: Annotated[str | None, typer.Option(help="tokens, flops or time.")] = None,
    seeds: Annotated[str | None, typer.Option(help="As 0,1,2.")] = None,
    processes: Annotated[int | None, typer.Option(help="Runs at a time.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Any other field, as data.source=folder.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the report again from --out.")] = False,
) -> None:
    """Train variants on the same budget, pair by pair, and write a report. A plan without seeds is only timed.

    If it is interrupted, the same command continues where it stopped.
    """
    from sqat.cli.console import console
    from sqat.errors import ConfigError

    if report_only:
        if out is None:
            raise ConfigError("--out is missing, but must name the comparison's folder where there is --report-only")
    elif plan is None:
        raise ConfigError("PLAN is missing, but must be a YAML file such as configs/compare/quick.yaml")
    else:
        values = {"match": match, "seeds": seeds and f"[{seeds}]", "processes": processes}
        changes = [f"{name}={value}" for name, value in values.items() if value is not None]
        out = _run(plan, out, [*changes, *(set_ or [])])
    from sqat.compare.report import write_report

    console.print(f"report: {write_report(out)}", soft_wrap=True)


def _run(path: Path, out: Path | None, overrides: list[str]) -> Path:
    """Run what is still missing, training or timing; returns the comparison's folder."""
    from sqat.cli.console import console, progress
    from sqat.compare.plan import read_plan
    from sqat.compare.runner import Interrupted, run_comparison

    plan = read_plan(path, overrides)
    folder = out or Path("runs") / plan.name
    try:
        failures = run_comparison(plan, folder, lambda text: console.print(text, soft_wrap=True), progress)
    except Interrupted as stopped:
        console.print(str(stopped), soft_wrap=True)
        raise typer.Exit(128 + stopped.number) from None
    if failures:
        console.print("\n".join(["failed:", *failures]), soft_wrap=True)
        raise typer.Exit(1)
    return folder
