"""Time, compared fairly: every variant in turn, again and again, in one process and with nothing else running.

Wall clocks of training runs depend on when they ran and beside what; ratios within a round do not.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqat.bench import ModelTimer, attention_call, environment, seconds
from sqat.compare.budget import Share
from sqat.compare.folder import Folder, plain
from sqat.compare.plan import ComparePlan, Variant
from sqat.data.batches import Batch, Batches
from sqat.durable import replace_file
from sqat.errors import DataError
from sqat.train.device import make_accelerator
from sqat.train.prepare import prepare_data
from sqat.untrusted import read_json

ATTENTION_TOKENS = 16384  # of a batch, or one row where that is longer
PART = ".timing.part.json"  # rounds that are done, until all are


def time_variants(plan: ComparePlan, variants: Sequence[Variant | Share], out: Path) -> dict[str, Any]:
    """Measure, write timing.json, and return what it holds."""
    chosen = [entry.variant if isinstance(entry, Share) else entry for entry in variants]
    device = make_accelerator(plan.train.device).device.type
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
        self.plan, self.device = plan, device
        timing, precision = plan.timing, plan.train.precision
        self.timer = ModelTimer(
            variant.model,
            batch,
            device,
            precision=precision,
            prompt_tokens=timing.prompt_tokens,
            new_tokens=timing.new_tokens,
        )
        self.calls = {length: _attention(variant, length, device) for length in timing.lengths}
        self.figures: dict[str, Any] = {
            "step_seconds": [],
            "evaluate_seconds": [],
            "prompt_seconds": [],
            "prompt_tokens": timing.prompt_tokens,
            "decode_seconds_per_token": [],
            "attention": {str(length): [[], []] for length in timing.lengths},
        }

    def measure_step(self, *, counts: bool) -> None:
        """One training step: what varies from second to second then falls on all variants alike."""
        parts = self.plan.train.gradient_accumulation  # each timed with an optimizer's step of its own
        taken = sum(self.timer.train() for _ in range(parts))
        if counts:
            self.figures["step_seconds"].append(taken)

    def measure(self, *, counts: bool) -> None:
        """All else."""
        found: dict[str, float] = {"evaluate_seconds": self.timer.evaluate()}
        found["prompt_seconds"], found["decode_seconds_per_token"] = self.timer.generate()
        attention = {length: [seconds(call, self.device) for call in calls] for length, calls in self.calls.items()}
        if counts:
            for name, value in found.items():
                self.figures[name].append(value)
            for length, values in attention.items():
                for series, value in zip(self.figures["attention"][str(length)], values, strict=True):
                    series.append(value)


def _attention(variant: Variant, length: int, device: str) -> list[Callable[[], Any]]:
    """Forward, and forward with backward."""
    rows = max(1, ATTENTION_TOKENS // length)
    return [attention_call(variant.model, rows, length, device, backward=backward) for backward in (False, True)]
