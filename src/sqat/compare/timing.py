"""Time, compared fairly: every variant in turn, round after round, in one process and with nothing else running.

Wall clocks of training runs depend on when they ran and beside what; ratios within a round do not.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqat.bench import ModelTimer, attention_call, environment, seconds
from sqat.compare.folder import Folder
from sqat.compare.plan import ComparePlan, Variant
from sqat.data.batches import Batch, Batches
from sqat.durable import replace_file
from sqat.train.distributed import choose_device
from sqat.train.prepare import PreparedData, prepare_data

ATTENTION_TOKENS = 16384  # in a batch on which attention alone is timed; one row where that is longer


def batches_of(plan: ComparePlan, data: PreparedData) -> Batches:
    """The training batches that all variants share."""
    return Batches(
        data.train,
        batch_size=plan.train.batch_size,
        context_length=plan.models()[0].model.context_length,
        mode=plan.data.mode,
        padding_as_target=plan.data.padding_as_target,
    )


def time_variants(plan: ComparePlan, variants: Sequence[Variant], out: Path) -> dict[str, Any]:
    """Measure every variant, write timing.json, and return what it holds."""
    device = choose_device(plan.train.device).type
    batches = batches_of(plan, prepare_data(plan.data, variants[0].model.vocab_size))
    batch = batches.batch(0, 0).to(device)
    timed = {variant.name: _Timed(plan, variant, batch, device) for variant in variants}
    result: dict[str, Any] = {
        "rounds": plan.timing.rounds,
        "batch_size": plan.train.batch_size,
        "context": variants[0].model.context_length,
        "environment": environment(),
        "variants": {name: entry.times for name, entry in timed.items()},
    }
    for round_ in range(plan.timing.rounds + 1):
        counts = round_ > 0  # the first prepares kernels and caches
        for _ in range(plan.timing.steps if counts else plan.timing.warmup):
            for entry in timed.values():
                entry.measure_step(counts=counts)
        for entry in timed.values():
            entry.measure(counts=counts)
            gc.collect()
    replace_file(out / Folder.TIMING, json.dumps(result, indent=1))
    return result


class _Timed:
    """One variant, and the times measured of it so far. Where `counts` is false, a time is not kept."""

    def __init__(self, plan: ComparePlan, variant: Variant, batch: Batch, device: str) -> None:
        self.plan, self.device = plan, device
        lengths = {"prompt_tokens": plan.timing.prompt_tokens, "new_tokens": plan.timing.new_tokens}
        self.timer = ModelTimer(variant.model, batch, device, precision=plan.train.precision, **lengths)
        self.calls = {length: _attention(variant, length, device) for length in plan.timing.lengths}
        self.times: dict[str, Any] = {
            **{name: [] for name in ("step_seconds", "evaluate_seconds", "prompt_seconds", "decode_seconds_per_token")},
            "prompt_tokens": plan.timing.prompt_tokens,
            "attention": {str(length): [[], []] for length in plan.timing.lengths},
        }

    def measure_step(self, *, counts: bool) -> None:
        """Time one training step. Variants take turns step by step: whatever slows the machine slows all alike."""
        parts = self.plan.train.gradient_accumulation  # each timed with an optimizer's step of its own
        taken = sum(self.timer.train() for _ in range(parts))
        if counts:
            self.times["step_seconds"].append(taken)

    def measure(self, *, counts: bool) -> None:
        """Time everything else."""
        found = [("evaluate_seconds", self.timer.evaluate())]
        found += zip(("prompt_seconds", "decode_seconds_per_token"), self.timer.generate(), strict=True)
        attention = {length: [seconds(call, self.device) for call in calls] for length, calls in self.calls.items()}
        if counts:
            for name, value in found:
                self.times[name].append(value)
            for length, values in attention.items():
                for series, value in zip(self.times["attention"][str(length)], values, strict=True):
                    series.append(value)


def _attention(variant: Variant, length: int, device: str) -> list[Callable[[], Any]]:
    """Attention forward, and forward with backward."""
    rows = max(1, ATTENTION_TOKENS // length)
    return [attention_call(variant.model, rows, length, device, backward=backward) for backward in (False, True)]
