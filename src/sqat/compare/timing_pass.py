"""Time, compared fairly: every variant in turn, again and again, in one process and with nothing else running.

Wall clocks of training runs depend on when they ran and beside what; ratios within a round do not.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from sqat.bench.attention import BOTH, FORWARD, attention_call
from sqat.bench.environment import environment
from sqat.bench.steps import make_step
from sqat.bench.timing import synchronize
from sqat.compare.budget import Share
from sqat.compare.folder import Folder, plain
from sqat.compare.plan import ComparePlan, Variant
from sqat.data.batches import Batch, Batches
from sqat.durable import replace_file
from sqat.errors import DataError
from sqat.generate import SamplingConfig, decode_tokens
from sqat.model import Decoder
from sqat.train.distributed import choose_device
from sqat.train.prepare import prepare_data
from sqat.train.step import use_bf16
from sqat.untrusted import read_json

ATTENTION_TOKENS = 16384  # of a batch, or one row where that is longer
PART = ".timing.part.json"  # rounds that are done, until all are


def time_variants(plan: ComparePlan, variants: Sequence[Variant | Share], out: Path) -> dict[str, Any]:
    """Measure, write timing.json, and return what it holds."""
    chosen = [entry.variant if isinstance(entry, Share) else entry for entry in variants]
    device = choose_device(plan.train.device).type
    data = prepare_data(plan.data, chosen[0].model.vocab_size)
    rows = Batches(
        data.train,
        batch_size=plan.train.batch_size,
        context_length=chosen[0].model.context_length,
        mode=plan.data.mode,
        padding_as_target=plan.data.padding_as_target,
    )
    batch = rows.batch(0, 0).to(device)
    timed = {variant.name: _Timed(plan, variant, batch, device) for variant in chosen}
    result: dict[str, Any] = {
        "rounds": plan.timing.rounds,
        "batch_size": plan.train.batch_size,
        "context": chosen[0].model.context_length,
        "environment": environment(),
        "variants": {name: entry.figures for name, entry in timed.items()},
    }
    asked = {name: plain(value) for name, value in plan.timing.to_dict().items() if name != "rounds"}
    done = _go_on(out / PART, asked, result["variants"])
    for round_ in range(done - 1, plan.timing.rounds):  # the first prepares kernels and caches, and does not count
        counts = round_ >= done
        for _ in range(plan.timing.steps if counts else plan.timing.warmup):
            for entry in timed.values():
                entry.measure_step(counts=counts)
        for entry in timed.values():
            entry.measure(counts=counts)
            gc.collect()
        replace_file(out / PART, json.dumps({"asked": asked, "variants": result["variants"]}))
    replace_file(out / Folder.TIMING, json.dumps(result, indent=1))
    (out / PART).unlink(missing_ok=True)
    return result


def _go_on(part: Path, asked: dict[str, Any], variants: dict[str, Any]) -> int:
    """Take over the rounds that were measured before a stop; returns how many. Ratios are taken within rounds, so they
    may be of another hour. What is damaged, of other variants or not measured as `asked` now is measured again.
    """
    try:
        before = read_json(part, finite=False)
        same = before["asked"] == asked and list(before["variants"]) == list(variants)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    if not same:
        return 0
    for name, entry in variants.items():
        entry.update(before["variants"][name])
    return len(next(iter(variants.values()))["evaluate_seconds"])


def read_timing(out: Path) -> dict[str, Any] | None:
    """What :func:`time_variants` wrote, or `None`. Raises DataError where it is damaged."""
    path = out / Folder.TIMING
    if not path.is_file():
        return None
    try:
        return read_json(path, finite=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


class _Timed:
    """One variant, and what was measured of it so far."""

    def __init__(self, plan: ComparePlan, variant: Variant, batch: Batch, device: str) -> None:
        self.plan, self.config, self.batch, self.device = plan, variant.model, batch, device
        precise = plan.train.precision == "float32"
        self.step = make_step("sqat float32" if precise else "sqat", variant.model, batch, device)
        self.model = Decoder(variant.model).to(device).eval()
        self.prompt = torch.randint(4, variant.model.vocab_size, (plan.timing.prompt_tokens,)).tolist()
        self.calls = {length: self._attention(length) for length in plan.timing.lengths}
        self.figures: dict[str, Any] = {
            "step_seconds": [],
            "evaluate_seconds": [],
            "prompt_seconds": [],
            "prompt_tokens": plan.timing.prompt_tokens,
            "decode_seconds_per_token": [],
            "attention": {str(length): [[], []] for length in plan.timing.lengths},
        }

    def measure_step(self, *, counts: bool) -> None:
        """One training step: what varies from second to second then falls on all variants alike."""
        parts = self.plan.train.gradient_accumulation  # each timed with an optimizer's step of its own
        seconds = self._seconds(lambda: [self.step() for _ in range(parts)])
        if counts:
            self.figures["step_seconds"].append(seconds)

    def measure(self, *, counts: bool) -> None:
        """All else."""
        found: dict[str, float] = {"evaluate_seconds": self._seconds(self._evaluate)}
        found["prompt_seconds"], found["decode_seconds_per_token"] = self._generate()
        attention = {length: [self._seconds(call) for call in calls] for length, calls in self.calls.items()}
        if counts:
            for name, value in found.items():
                self.figures[name].append(value)
            for length, values in attention.items():
                for series, value in zip(self.figures["attention"][str(length)], values, strict=True):
                    series.append(value)

    def _evaluate(self) -> None:
        bf16 = use_bf16(self.plan.train.precision, self.device)
        with torch.no_grad(), torch.autocast(self.device, dtype=torch.bfloat16) if bf16 else nullcontext():
            batch = self.batch
            self.model.hidden_states(batch.inputs, positions=batch.positions, documents=batch.documents)

    def _generate(self) -> tuple[float, float]:
        """Seconds until a prompt's first token, and for each of those that follow."""
        config = SamplingConfig(temperature=0.0, max_tokens=self.plan.timing.new_tokens + 1)
        synchronize(self.device)
        start = time.perf_counter()
        tokens = decode_tokens(self.model, [self.prompt], config)
        next(tokens).cpu()
        first = time.perf_counter()
        for token in tokens:
            last = token
        last.cpu()
        return first - start, (time.perf_counter() - first) / self.plan.timing.new_tokens

    def _attention(self, length: int) -> list[Callable[[], Any]]:
        rows = max(1, ATTENTION_TOKENS // length)
        return [attention_call(self.config, rows, length, self.device, direction) for direction in (FORWARD, BOTH)]

    def _seconds(self, call: Callable[[], Any]) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - start
