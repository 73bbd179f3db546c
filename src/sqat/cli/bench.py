"""`sqat bench`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sqat.cli.numbers import whole_numbers

if TYPE_CHECKING:
    from sqat.bench.settings import BenchSettings

bench = typer.Typer(help="Measure this package beside its peers, alternately, in one run.", no_args_is_help=True)

COMMANDS = {
    "attention": "What fewer query heads buy, against full attention, at growing context.",
    "long": "The paper's long-sequence table, whole models, ours beside the paper's figures.",
    "training": "A training step, and training end to end, beside transformers and rxlm.",
    "generation": "Tokens per second of one stream and of many, and the wait for the first token.",
    "memory": "Peak memory of training, and what the key/value cache takes.",
    "startup": "Seconds until there is something to see.",
    "peers": "Which peers are installed, and how to get the others.",
    "all": "Everything, and how far the project's targets are met.",
}
GPU_MINUTES = 7.0  # GPUs are often lent for ten
PIPED_WIDTH = 130  # columns, where there is no terminal to say how many


def _command(name: str) -> Callable[..., None]:
    def command(
        device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
        out: Annotated[Path | None, typer.Option(help="Folder for JSON files and summary.md.")] = None,
        rounds: Annotated[int, typer.Option(help="How often each candidate is measured.")] = 3,
        model: Annotated[str, typer.Option(help="The preset to train and to generate with.")] = "sqat-mm",
        data: Annotated[str, typer.Option(help="Hub data set, folder, file, or `stories[:N]`.")] = "stories",
        quick: Annotated[bool, typer.Option("--quick", help="Small sizes: a check that it runs.")] = False,
        compiled: Annotated[
            bool | None,
            typer.Option("--compiled/--not-compiled", help="The compiled training step too; default: on a GPU."),
        ] = None,
        minutes: Annotated[
            float | None, typer.Option(help="Begin nothing after as many; default: 7 for `all` on a GPU, else no end.")
        ] = None,
        lengths: Annotated[
            str | None,
            typer.Option(help="Of `attention` and `long`, in tokens, as 4096,32768; default: what suits the device."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        from sqat.bench.settings import BenchSettings

        gpu = device == "cuda"
        settings = BenchSettings(
            device=device,
            model=model,
            data=data,
            rounds=rounds,
            quick=quick,
            compiled=gpu if compiled is None else compiled,
            lengths=tuple(whole_numbers("--lengths", lengths, "4096,32768")) if lengths else (),
            minutes=GPU_MINUTES if minutes is None and gpu and name == "all" else minutes,
        )
        _measure(name, settings, out, as_json)

    return command


def _measure(name: str, settings: BenchSettings, out: Path | None, as_json: bool) -> None:
    """Run, and show and write every result as soon as it is there; exit with 1 if something failed."""
    from sqat.bench import report
    from sqat.bench.run import ORDER, run_benchmarks
    from sqat.bench.targets import outcomes
    from sqat.cli.console import console

    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    results = []
    for result in run_benchmarks(ORDER[settings.device] if name == "all" else [name], settings):
        results.append(result)
        if not as_json:
            report.print_result(console, result)
        if out is not None:
            report.write_result(out, result)
            report.write_summary(out, results, outcomes(results), shlex.join(["sqat", *sys.argv[1:]]))
    reached = outcomes(results)
    if as_json:
        everything = {"results": [r.to_dict() for r in results], "targets": [o.to_dict() for o in reached]}
        typer.echo(json.dumps(everything))
    elif name == "all":
        report.print_targets(console, reached)
    failures = [line for result in results for line in result.failures]
    for line in failures:
        typer.echo(f"failed: {line}", err=True)
    if failures:
        raise typer.Exit(1)


for _name, _help in COMMANDS.items():
    bench.command(_name, help=_help)(_command(_name))
