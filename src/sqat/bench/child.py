"""Measurements in a process of their own: a fresh allocator, its own imports and its own peak memory.

A task is a function of this package that takes a mapping of plain values and returns one. The child writes the result
to a file, so that whatever the libraries print does not matter.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqat
from sqat.bench.results import BenchError, NotMeasured

TASKS = {
    "sqat-train": "sqat.bench.end_to_end:sqat_training",
    "card-snippet": "sqat.bench.end_to_end:card_snippet",
    "steps": "sqat.bench.steps:timed_steps",
}
ERROR_LINES = 40  # of the child's output, searched for what went wrong


def run_child(
    task: str,
    settings: Mapping[str, Any],
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the task returned, in a new process.

    Args:
        task: a name in `TASKS`.
        settings: plain values for it.
        timeout: seconds until the run's time is up, when it is ended.
        environment: variables set beside this process's.

    Raises:
        BenchError: the task failed; with the last line of what it said.
        NotMeasured: it was ended.
    """
    with tempfile.TemporaryDirectory(prefix="sqat-bench-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "sqat.bench.child", task, str(result)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(settings),
                capture_output=True,
                text=True,
                timeout=timeout,
                env=child_environment(environment),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotMeasured(f"it was ended after {error.timeout:.0f} s, when its time was up") from error
        if done.returncode or not result.is_file():
            raise BenchError(f"{task} ended with code {done.returncode}: {_last_error(done.stderr)}")
        return json.loads(result.read_text(encoding="utf-8"))


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with this very package findable, and no talk of libraries about progress."""
    source = str(Path(sqat.__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH")) if part)
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true")}
    return {**os.environ, **quiet, "PYTHONPATH": path, **(extra or {})}


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far.

    Linux's own figure for this program, since `ru_maxrss` also counts what the parent had before it started us.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()[-ERROR_LINES:] if line.strip()]
    return lines[-1] if lines else "it said nothing"


def main() -> None:
    """Run the task named on the command line, with settings from standard input."""
    task, result = sys.argv[1:]
    module, function = TASKS[task].split(":")
    answer = getattr(importlib.import_module(module), function)(json.load(sys.stdin))
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
