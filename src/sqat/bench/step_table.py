"""A training step beside the peers', the naive twin's and our own in other precisions: same sizes, same batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sqat.bench.child import run_child
from sqat.bench.peers import ALLOCATOR, EXPERTS, missing
from sqat.bench.results import NotMeasured, Table
from sqat.bench.settings import Context
from sqat.bench.steps import TimedStep
from sqat.bench.timing import Candidate, Sample, alternate
from sqat.bench.workload import plain, save_batch
from sqat.cost import flops_per_token
from sqat.data.batches import Batch

STEP = "training step"
OURS, PACKED, PADDED = "sqat", "sqat, packed documents", "sqat, padded rows"
TUNED = "our allocator settings"
NAIVE = "naive twin, float32"
NOTES = [
    f"all but '{PACKED}' and '{PADDED}' train on the same full rows, causal, without padding",
    "transformers' model has norms on queries and keys, no biases, no dropout, no router loss; ours has the card's",
    "share of the ceiling: 3 × the model's forward operations, over the best matrix product of the same type",
]
STEPS = {"cpu": {"warmup": 6, "steps": 4}, "cuda": {"warmup": 5, "steps": 20}}
ONE_STEP = {"warmup": 1, "steps": 1}


def step_table(context: Context) -> Table:
    """Positions per second. On a CPU every measurement is a process of its own, since allocator settings hold for a
    whole process; on a GPU the candidates stay in this one.
    """
    rows = _batches(context)
    kinds = {OURS: OURS, PACKED: OURS, PADDED: OURS, "sqat float32": "sqat float32"}
    if context.settings.compiled:
        kinds["sqat compiled"] = "sqat compiled"
    measure = _Measure(context, rows)
    candidates: dict[str, Candidate] = {name: partial(measure, name, kind) for name, kind in kinds.items()}
    if not missing("transformers"):
        backends = EXPERTS if context.settings.config.is_moe else ("dense",)
        for backend in backends:
            candidates[f"transformers {backend}"] = partial(measure, OURS, f"qwen3 {backend}")
        if context.settings.device == "cpu":
            for backend in backends[:2]:
                tuned = partial(measure, OURS, f"qwen3 {backend}", ALLOCATOR)
                candidates[f"transformers {backend}, {TUNED}"] = tuned
    table = Table(STEP, "positions/s", baseline=OURS, notes=NOTES)
    alternate(table, candidates, **context.alternation, warmup=False)
    naive = {NAIVE: partial(measure, OURS, "naive")}
    return alternate(table, naive, rounds=1, warmup=False, deadline=context.deadline)


def _batches(context: Context) -> dict[str, tuple[Batch, Path]]:
    """By the name of the candidate that trains on them; all others take the first."""
    packed, padded = (context.workload.batch(context.settings, mode) for mode in ("packed", "rows"))
    batches = {OURS: plain(packed), PACKED: packed, PADDED: padded}
    return {
        name: (batch, save_batch(batch, context.folder / f"batch-{i}.safetensors"))
        for i, (name, batch) in enumerate(batches.items())
    }


class _Measure:
    """One measurement of a candidate."""

    def __init__(self, context: Context, batches: Mapping[str, tuple[Batch, Path]]) -> None:
        self.context, self.batches = context, batches
        self.prepared: dict[tuple[str, str], TimedStep] = {}

    def __call__(self, rows: str, kind: str, environment: Mapping[str, str] | None = None) -> Sample:
        batch, path = self.batches.get(rows, self.batches[OURS])
        seconds, figures = self._seconds(kind, path, environment)
        config, ceiling = self.context.settings.config, self.context.ceiling
        flops = 3 * flops_per_token(config).total * batch.inputs.numel() / seconds
        share = flops / (ceiling.float32 if "float32" in kind or kind == "naive" else ceiling.bf16)
        real = {"real tokens/s": batch.num_targets / seconds, "share of ceiling": share}
        return Sample(batch.inputs.numel() / seconds, {**real, **figures})

    def _seconds(self, kind: str, batch: Path, environment: Mapping[str, str] | None) -> tuple[float, dict[str, float]]:
        settings = self.context.settings
        left = self.context.seconds_left()
        counts = ONE_STEP if settings.quick or kind == "naive" else STEPS[settings.device]
        model = settings.config.to_dict()
        task = {"kind": kind, "model": model, "batch": str(batch), "device": settings.device, **counts}
        if settings.device == "cuda":
            key = (kind, str(batch))
            if key not in self.prepared:
                self.prepared[key] = TimedStep(task)
            return self.prepared[key].seconds(), {"warm-up, s": self.prepared[key].first_seconds}
        answer = run_child("steps", task, timeout=left, environment=environment)
        if "not_measured" in answer:
            raise NotMeasured(answer["not_measured"])
        return answer["seconds"], {"warm-up, s": answer["first_seconds"], "peak MB": answer["peak_bytes"] / 1e6}
