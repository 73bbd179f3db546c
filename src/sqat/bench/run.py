"""Running benchmarks one after the other: what fails is reported, and the next begins."""

from __future__ import annotations

import importlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqat.bench.environment import environment
from sqat.bench.results import Result
from sqat.bench.settings import BenchSettings, Context
from sqat.errors import DataError

BENCHMARKS = {
    "peers": "sqat.bench.peers:measure_peers",
    "startup": "sqat.bench.startup:measure_startup",
    "generation": "sqat.bench.generation:measure_generation",
    "memory": "sqat.bench.memory:measure_memory",
    "training": "sqat.bench.training:measure_training",
    "attention": "sqat.bench.attention:measure_attention",
    "long": "sqat.bench.long:measure_long",
}
# "all", in order. On a CPU those whose process must be as it was at the start come before attention, which changes the
# allocator's settings; on a GPU, where time is short, what matters most.
ORDER = {
    "cpu": ("peers", "startup", "generation", "memory", "training", "attention", "long"),
    "cuda": ("peers", "training", "long", "attention", "generation", "memory", "startup"),
}
SHARES = {"peers": 0.1, "startup": 0.6, "generation": 1.5, "memory": 1.5, "training": 6, "attention": 2, "long": 2}


def run_benchmarks(names: Sequence[str], settings: BenchSettings) -> Iterator[Result]:
    """Yield each benchmark's result when it is there. Where minutes are limited, each may use its share of those left.

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
            result.settings, result.environment = settings.to_dict(), surroundings
            result.seconds = time.monotonic() - start
            yield result


def _run(name: str, context: Context) -> Result:
    try:
        return _function(name)(context)
    except DataError:  # the user named something unreadable: nothing else can be measured on it either
        raise
    except Exception as error:  # noqa: BLE001 - the other benchmarks are run all the same, and the report says so
        return Result(name, error=f"{type(error).__name__}: {error}")


def _function(name: str) -> Callable[[Context], Result]:
    module, function = BENCHMARKS[name].split(":")
    return getattr(importlib.import_module(module), function)
