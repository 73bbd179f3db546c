"""`python -m benchmarks.harness`: run benchmarks one after the other, and report failures at the end."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks.harness.against import compare_checkouts
from benchmarks.harness.results import Result
from benchmarks.harness.settings import Context, Settings
from benchmarks.harness.targets import outcomes
from rich.console import Console

from benchmarks.harness import report
from sqat.bench import environment
from sqat.errors import ConfigError, DataError, SqatError

BENCHMARKS = {
    "peers": ("peers:measure_peers", "which peers are installed, and how to get the others"),
    "startup": ("startup:measure_startup", "seconds until there is something to see"),
    "generation": ("generation:measure_generation", "tokens/s of one stream and of many, the wait for the first token"),
    "memory": ("training:measure_memory", "peak memory of training, size of the key/value cache"),
    "training": ("training:measure_training", "a training step, and training end to end"),
    "attention": ("attention:measure_attention", "what fewer query heads buy over full attention"),
    "long": ("long:measure_long", "the paper's long-sequence table, whole models, ours beside the paper's"),
}
# "all", in order. On a CPU those that need a fresh process come before attention, which changes the allocator's
# settings; on a GPU, where time is short, what matters most comes first.
ORDER = {
    "cpu": ("peers", "startup", "generation", "memory", "training", "attention", "long"),
    "cuda": ("peers", "training", "long", "attention", "generation", "memory", "startup"),
}
SHARES = {"peers": 0.1, "startup": 0.6, "generation": 1.5, "memory": 1.5, "training": 6, "attention": 2, "long": 2}
GPU_MINUTES = 7.0  # of "all": GPUs are often lent for ten
PIPED_WIDTH = 130  # columns, where no terminal says how many


def main() -> None:
    """Show and write every result as soon as it is there; exit with 1 if something failed."""
    options = _parser().parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device is cuda, but no GPU is available")
    try:
        failures = _measure(options, _settings(options))
    except SqatError as error:
        sys.exit(f"error: {error}")
    sys.exit("\n".join(f"failed: {line}" for line in failures) or None)


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<12}{help_}" for name, (_, help_) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harness",
        description=f"Measure sqat beside its peers, alternately, in one run.\n\nbenchmarks:\n{names}\n  all",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "all"], metavar="BENCHMARK")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="folder for JSON files and summary.md")
    parser.add_argument("--rounds", type=int, default=3, help="how often each candidate is measured")
    parser.add_argument("--model", default="sqat-mm", help="the preset to train and to generate with")
    parser.add_argument("--data", default="stories", help="Hub data set, folder, file, or stories[:N]")
    parser.add_argument("--quick", action="store_true", help="small sizes: a check that it runs")
    compiled = {"action": argparse.BooleanOptionalAction, "help": "the compiled training step too; default: on a GPU"}
    parser.add_argument("--compiled", **compiled)  # type: ignore[arg-type]
    parser.add_argument("--minutes", type=float, help="start nothing after this time; default: 7 for all on a GPU")
    parser.add_argument("--lengths", type=_lengths, default=(), help="of attention and long, in tokens, as 4096,32768")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="other libraries too")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="compare with another checkout of sqat instead"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers like 4096,32768") from None


def _settings(options: argparse.Namespace) -> Settings:
    gpu = options.device == "cuda"
    if options.lengths and options.benchmark not in ("attention", "long", "all"):
        raise ConfigError(f"--lengths is of the benchmarks attention and long, not of {options.benchmark}")
    return Settings(
        device=options.device,
        model=options.model,
        data=options.data,
        rounds=options.rounds,
        quick=options.quick,
        compiled=gpu if options.compiled is None else options.compiled,
        lengths=options.lengths,
        minutes=GPU_MINUTES if options.minutes is None and gpu and options.benchmark == "all" else options.minutes,
        peers=options.peers,
    )


def _measure(options: argparse.Namespace, settings: Settings) -> list[str]:
    """Run, report and write; returns a line for each failure."""
    names = ORDER[settings.device] if options.benchmark == "all" else (options.benchmark,)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    results: list[Result] = []
    other = options.against and options.against.resolve()
    for result in compare_checkouts(names, settings, other) if other else run_benchmarks(names, settings):
        results.append(result)
        reached = [] if other else outcomes(results)
        if not options.json:
            report.print_result(console, result)
        if options.out is not None:
            report.write_result(options.out, result)
            report.write_summary(
                options.out, results, reached, shlex.join(["python -m benchmarks.harness", *sys.argv[1:]])
            )
    if options.json:
        everything = {"results": [r.to_dict() for r in results], "targets": [o.to_dict() for o in reached]}
        print(json.dumps(everything))
    elif options.benchmark == "all" and not other:
        report.print_targets(console, reached)
    return [line for result in results for line in result.failures]


def run_benchmarks(names: Sequence[str], settings: Settings) -> Iterator[Result]:
    """Yield each benchmark's result. Where minutes are limited, each may use its share of those left.

    Raises:
        DataError: the data cannot be read.
    """
    surroundings = environment()
    end = math.inf if settings.minutes is None else time.monotonic() + 60 * settings.minutes
    with tempfile.TemporaryDirectory(prefix="sqat-bench-") as folder:
        context = Context(settings, Path(folder))
        for index, name in enumerate(names):
            start = time.monotonic()
            share = SHARES[name] / sum(SHARES[later] for later in names[index:])
            context.deadline = start + share * (end - start)
            result = _run(name, context)
            result.settings, result.environment = asdict(settings), surroundings
            result.seconds = time.monotonic() - start
            yield result


def _run(name: str, context: Context) -> Result:
    module, function = BENCHMARKS[name][0].split(":")
    try:
        return getattr(importlib.import_module(f"benchmarks.harness.{module}"), function)(context)
    except DataError:  # the user named something unreadable: nothing else can be measured on it either
        raise
    except Exception as error:  # noqa: BLE001 - reported; the other benchmarks still run
        return Result(name, error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
