"""`startup`: seconds until there is something to see, each in a new process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.child import child_environment
from benchmarks.harness.results import BenchError, NotMeasured, Result, Table
from benchmarks.harness.settings import Context
from benchmarks.harness.timing import OUT_OF_TIME, Candidate, Sample, alternate

from sqat import Decoder, Tokenizer, save_model

STARTUP = "start-up"


def measure_startup(context: Context) -> Result:
    """Wall time of whole processes, interpreter included."""
    checkpoint = _checkpoint(context)
    generate = ("-m", "sqat", "generate", str(checkpoint), "Once", "--max-tokens", "1")
    commands: dict[str, Sequence[str]] = {
        "python alone": ("-c", "pass"),
        "import sqat": ("-c", "import sqat"),
        "sqat --help": ("-m", "sqat", "--help"),
        "import torch": ("-c", "import torch"),
        "import sqat.model": ("-c", "import sqat.model"),
        "sqat generate: load, write one token": generate,
    }
    if context.has("transformers"):
        commands["import transformers' Qwen3-MoE"] = ("-c", "from transformers import Qwen3MoeForCausalLM")
    if context.has("rxlm"):
        commands["import rxlm's models"] = ("-c", "import rxlm.experimental.models")
    table = Table(STARTUP, "s", higher_is_better=False, notes=["whole processes, the interpreter's start included"])
    candidates: dict[str, Candidate] = {name: _run(context, command) for name, command in commands.items()}
    return Result(
        "startup", [alternate(table, candidates, **context.alternation)], context.absent("transformers", "rxlm")
    )


def _checkpoint(context: Context) -> Path:
    folder = save_model(Decoder(context.settings.config), context.folder / "checkpoint")
    Tokenizer.load(context.workload.tokenizer).save(folder)
    return folder


def _run(context: Context, arguments: Sequence[str]) -> Candidate:
    def measure() -> Sample:
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                capture_output=True,
                text=True,
                env=child_environment(),
                timeout=context.seconds_left(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotMeasured(OUT_OF_TIME) from error
        seconds = time.perf_counter() - start
        if done.returncode:
            raise BenchError(f"ended with code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        return Sample(seconds)

    return measure
