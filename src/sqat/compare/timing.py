"""Time, compared fairly: every variant in turn, round after round, in one process and with nothing else running.

Wall clocks of training runs depend on when they ran and beside what; ratios within a round do not.
"""

import gc
import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from sqat.bench import ModelTimer, attention_call, environment, seconds
from sqat.compare.folder import Folder
from sqat.compare.plan import ComparePlan, Variant
from sqat.data.batches import Batches
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


def time_variants(
    plan: ComparePlan, variants: Sequence[Variant], out: Path, show: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Measure every variant, write timing.json, and return what it holds. `show` is called before each measurement."""
    device, timing = choose_device(plan.train.device).type, plan.timing
    batches = batches_of(plan, prepare_data(plan.data, variants[0].model.vocab_size))
    batch = batches.batch(0, 0).to(device)
    lengths = {"prompt_tokens": timing.prompt_tokens, "new_tokens": timing.new_tokens}
    timers = {v.name: ModelTimer(v.model, batch, device, precision=plan.train.precision, **lengths) for v in variants}
    times: dict[str, dict[str, Any]] = {}
    done, turns = count(), len(variants) * (timing.warmup + timing.rounds * timing.steps + timing.rounds + 1)
    for round_ in range(timing.rounds + 1):
        if round_ < 2:  # the first round prepares kernels and caches, and does not count
            times = {variant.name: _no_times(plan) for variant in variants}
        # Variants take turns step by step: whatever slows the machine for a while slows all alike.
        for _ in range(timing.steps if round_ else timing.warmup):
            for name, timer in timers.items():
                show(f"timing {name}, round {round_} of {timing.rounds}", next(done), turns)
                # each micro-batch with an optimizer's step of its own
                taken = sum(timer.train() for _ in range(plan.train.gradient_accumulation))
                times[name]["step_seconds"].append(taken)
        for variant in variants:
            show(f"timing {variant.name}, round {round_} of {timing.rounds}", next(done), turns)
            _measure(variant, timers[variant.name], times[variant.name], device)
            gc.collect()
    result = {
        "rounds": timing.rounds,
        "batch_size": plan.train.batch_size,
        "context": variants[0].model.context_length,
        "environment": environment(),
        "variants": times,
    }
    replace_file(out / Folder.TIMING, json.dumps(result, indent=1))
    return result


def _no_times(plan: ComparePlan) -> dict[str, Any]:
    kinds = ("step_seconds", "evaluate_seconds", "prompt_seconds", "decode_seconds_per_token")
    attention: dict[str, Any] = {
        str(length): [[], []] for length in plan.timing.lengths
    }  # forward; forward and backward
    return {**{kind: [] for kind in kinds}, "prompt_tokens": plan.timing.prompt_tokens, "attention": attention}


def _measure(variant: Variant, timer: ModelTimer, times: dict[str, Any], device: str) -> None:
    """Time everything but training steps once."""
    times["evaluate_seconds"].append(timer.evaluate())
    prompt, token = timer.generate()
    times["prompt_seconds"].append(prompt)
    times["decode_seconds_per_token"].append(token)
    for length, (forward, both) in times["attention"].items():
        rows = max(1, ATTENTION_TOKENS // int(length))
        for taken, backward in ((forward, False), (both, True)):
            call = attention_call(variant.model, rows, int(length), device, backward=backward)
            taken.append(seconds(call, device))
