"""Measurements in a process of their own: a fresh allocator, its own imports and its own peak memory.

A task is "MODULE:FUNCTION" of this package: it takes a mapping of plain values and returns one. The child writes the
result to a file, so whatever the libraries print does no harm.
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

from benchmarks.harness.results import BenchError, NotMeasured

import sqat

ROOT = Path(__file__).resolve().parents[2]


def run_child(
    task: str,
    settings: Mapping[str, Any],
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the task returned, in a new process.

    Args:
        task: "MODULE:FUNCTION" of this package.
        settings: plain values for it.
        timeout: seconds until the child is ended.
        environment: variables set beside this process's.

    Raises:
        BenchError: the task failed; quotes the last line of its output.
        NotMeasured: the task declined, or was ended.
    """
    with tempfile.TemporaryDirectory(prefix="sqat-bench-") as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.harness.child", task, str(result)]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(settings),
                capture_output=True,
                text=True,
                timeout=timeout,
                env=child_environment(extra=environment),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotMeasured(f"it was ended after {error.timeout:.0f} s, when its time was up") from error
        if done.returncode or not result.is_file():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise BenchError(f"{task} ended with code {done.returncode}: {lines[-1] if lines else 'no output'}")
        answer = json.loads(result.read_text(encoding="utf-8"))
    if "not_measured" in answer:
        raise NotMeasured(answer["not_measured"])
    return answer


def child_environment(source: Path | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with which a child finds this package and the sqat in `source` (by default, ours)."""
    source = source or Path(sqat.__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [str(source), str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true")}
    return {**os.environ, **quiet, "PYTHONPATH": path, **(extra or {})}


def main() -> None:
    """Run the task named on the command line, with settings from standard input."""
    task, result = sys.argv[1:]
    module, function = task.split(":")
    try:
        answer = getattr(importlib.import_module(f"benchmarks.harness.{module}"), function)(json.load(sys.stdin))
    except NotMeasured as reason:
        answer = {"not_measured": str(reason)}
    Path(result).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
