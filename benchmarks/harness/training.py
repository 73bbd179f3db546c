"""`training` and `memory`: a training step beside the peers', training end to end as a user starts it, peak memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.child import run_child
from benchmarks.harness.peers import ALLOCATOR, EXPERTS
from benchmarks.harness.results import BenchError, Result, Series, Table
from benchmarks.harness.settings import Context, plain, save_batch
from benchmarks.harness.tasks import TimedStep
from benchmarks.harness.timing import Candidate, Sample, alternate

from sqat.checkpoint.rxnn import config_to_rxnn
from sqat.cost import flops_per_token, kv_bytes, kv_bytes_per_token
from sqat.data.batches import Batch
from sqat.errors import ConfigError
from sqat.variants import PRESETS, preset

END_TO_END, STEP = "training end to end", "training step"
PEAK, CACHE = "peak memory of training", "key/value cache"
SQAT, OUR_SNIPPET, RXLM = "sqat train", "card's snippet, our rxnn", "card's snippet, rxlm"
COMPILED, RXLM_TUNED = "sqat train, compiled", "card's snippet, rxlm, our allocator settings"
END_TO_END_NOTES = [
    "real targets (padding never counts) per second of the training loop, waiting for data included",
    "start, tokenizer training, tokenising ahead, validation, saving and the first steps are left out",
]
END_TO_END_STEPS = {"cpu": {"warmup": 6, "steps": 14}, "cuda": {"warmup": 10, "steps": 60}}
QUICK_STEPS, MEMORY_STEPS = {"warmup": 1, "steps": 3}, {"warmup": 1, "steps": 3}
CARD_TOKENS = 2.3e9
CARD_MINUTES = {"xsqat-mm": 383, "sqat-mm": 387, "ssqat-mm": 390, "gqa-ref-micro": 398, "mqa-ref-micro": 399}  # one L4

OURS, PACKED, PADDED, FLOAT32 = "sqat", "sqat, packed documents", "sqat, padded rows", "sqat float32"
TUNED, NAIVE = "our allocator settings", "naive twin, float32"
STEP_NOTES = [
    f"all but '{PACKED}' and '{PADDED}' train on the same full rows, causal, without padding",
    "transformers' model has norms on queries and keys, no biases, no dropout, no router loss; ours has the card's",
    "share of the ceiling: 3 × the model's forward operations, over the best matrix product of the same type",
]
STEPS = {"cpu": {"warmup": 6, "steps": 4}, "cuda": {"warmup": 5, "steps": 20}}
ONE_STEP = {"warmup": 1, "steps": 1}


def measure_training(context: Context) -> Result:
    """End to end, one step, and the ceiling that shares are given of."""
    with context.part(0.6):
        whole = end_to_end_table(context)
    return Result("training", [whole, step_table(context), context.ceiling.table], _absent(context))


def measure_memory(context: Context) -> Result:
    """Peak memory of training, and the size of the key/value cache."""
    return Result("memory", [peak_table(context), cache_table()], _absent(context))


def _absent(context: Context) -> dict[str, str]:
    return context.absent("transformers", "rxlm")


def end_to_end_table(context: Context) -> Table:
    """Real targets per second, every measurement in a process of its own."""
    settings = context.settings
    counts = QUICK_STEPS if settings.quick else END_TO_END_STEPS[settings.device]
    table = Table(END_TO_END, "real tokens/s", baseline=RXLM, notes=list(END_TO_END_NOTES))
    candidates: dict[str, Candidate] = {SQAT: partial(_rate, context, "sqat_training", sqat_task(context, counts))}
    if settings.compiled:
        task = sqat_task(context, counts, compiled=True)
        candidates[COMPILED] = partial(_rate, context, "sqat_training", task)
    for name, library in _snippets(context, table).items():
        task = snippet_task(context, library, counts)
        candidates[name] = partial(_rate, context, "card_snippet", task)
        if library == "rxlm" and settings.device == "cpu":
            candidates[RXLM_TUNED] = partial(_rate, context, "card_snippet", task, ALLOCATOR)
    alternate(table, candidates, **context.alternation, warmup=False)
    if settings.device == "cuda" and not settings.quick:
        add_card_minutes(table, settings.model)
    return table


def add_card_minutes(table: Table, model: str) -> None:
    """Add how long the card's training would take at each rate, and how long it took."""
    for series in table.series:
        series.figures["minutes for 2.3 B"] = CARD_TOKENS / series.spread.median / 60
    if model in CARD_MINUTES:
        table.notes.append(f"the card took {CARD_MINUTES[model]} minutes for 2.3 B tokens on one L4")


def _snippets(context: Context, table: Table) -> dict[str, str]:
    """The libraries that run the card's snippet, by the name of the row; none where they cannot hold the model."""
    try:
        config_to_rxnn(context.settings.config)
    except ConfigError as error:
        table.skipped |= dict.fromkeys((OUR_SNIPPET, RXLM), str(error))
        return {}
    return {OUR_SNIPPET: "rxnn"} | ({RXLM: "rxlm"} if context.has("rxlm") else {})


def sqat_task(context: Context, counts: Mapping[str, int], *, compiled: bool = False) -> dict[str, Any]:
    """Settings of the child that runs `sqat train`: the command's defaults, but for these fields."""
    settings = context.settings
    run = {
        "model": settings.config.to_dict(),
        "data": context.workload.data.to_dict(),
        "train": {
            "batch_size": settings.batch_size,
            "max_steps": counts["steps"] + 1,  # it is stopped one earlier, so that nothing is evaluated
            "log_every": counts["warmup"],
            "device": settings.device,
            "compile": compiled,
        },
    }
    return {"run": run, "folder": str(context.folder), "device": settings.device, **counts}


def snippet_task(context: Context, library: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """Settings of the child that runs the card's snippet."""
    return {
        "library": library,
        "arguments": config_to_rxnn(context.settings.config),
        "tokenizer": str(context.workload.tokenizer),
        "texts": str(context.workload.texts),
        "batch_size": context.settings.batch_size,
        "seq_len": context.settings.config.context_length,
        "log_dir": str(context.folder / "tensorboard"),
        "device": context.settings.device,
        **counts,
    }


def _run(
    context: Context, task: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    if "run" in settings:
        settings = {**settings, "out": tempfile.mkdtemp(prefix="run-", dir=settings["folder"])}
    return run_child(f"tasks:{task}", settings, timeout=context.seconds_left(), environment=environment)


def _rate(
    context: Context, task: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Sample:
    answer = _run(context, task, settings, environment)
    if answer["seconds"] <= 0:
        raise BenchError(f"{task} measured no time")
    figures = {"data wait": answer["data_wait"], "peak MB": answer["peak_bytes"] / 1e6}
    return Sample(answer["tokens"] / answer["seconds"], figures)


def step_table(context: Context) -> Table:
    """Positions per second. On a CPU every measurement is a process of its own, since allocator settings hold for a
    whole process; on a GPU the candidates stay in this one.
    """
    settings = context.settings
    measure = _StepMeasure(context)
    kinds = {OURS: OURS, PACKED: OURS, PADDED: OURS, FLOAT32: FLOAT32}
    if settings.compiled:
        kinds["sqat compiled"] = "sqat compiled"
    candidates: dict[str, Candidate] = {name: partial(measure, name, kind) for name, kind in kinds.items()}
    if context.has("transformers"):
        backends = EXPERTS if settings.config.is_moe else ("dense",)
        for backend in backends:
            candidates[f"transformers {backend}"] = partial(measure, OURS, f"qwen3 {backend}")
        for backend in backends[:2] if settings.device == "cpu" else ():
            tuned = partial(measure, OURS, f"qwen3 {backend}", ALLOCATOR)
            candidates[f"transformers {backend}, {TUNED}"] = tuned
    table = Table(STEP, "positions/s", baseline=OURS, notes=list(STEP_NOTES))
    alternate(table, candidates, **context.alternation, warmup=False)
    naive = {NAIVE: partial(measure, OURS, "naive")} if settings.peers else {}
    return alternate(table, naive, rounds=1, warmup=False, deadline=context.deadline)


class _StepMeasure:
    """One measurement of a candidate, on the batch of the row's name (by default, that of `OURS`)."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.prepared: dict[tuple[str, str], TimedStep] = {}
        packed, padded = context.workload.batch("packed"), context.workload.batch("rows")
        self.batches: dict[str, tuple[Batch, Path]] = {}
        for i, (name, batch) in enumerate({OURS: plain(packed), PACKED: packed, PADDED: padded}.items()):
            self.batches[name] = batch, save_batch(batch, context.folder / f"batch-{i}.safetensors")

    def __call__(self, row: str, kind: str, environment: Mapping[str, str] | None = None) -> Sample:
        batch, path = self.batches.get(row, self.batches[OURS])
        seconds, figures = self._seconds(kind, path, environment)
        config, ceiling = self.context.settings.config, self.context.ceiling
        flops = 3 * flops_per_token(config).total * batch.inputs.numel() / seconds
        share = flops / (ceiling.float32 if kind in (FLOAT32, "naive") else ceiling.bf16)
        real = {"real tokens/s": batch.num_targets / seconds, "share of ceiling": share}
        return Sample(batch.inputs.numel() / seconds, {**real, **figures})

    def _seconds(self, kind: str, batch: Path, environment: Mapping[str, str] | None) -> tuple[float, dict[str, float]]:
        settings = self.context.settings
        counts = ONE_STEP if settings.quick or kind == "naive" else STEPS[settings.device]
        task = step_task(self.context, kind, batch, counts)
        if settings.device == "cuda":
            key = (kind, str(batch))
            if key not in self.prepared:
                self.prepared[key] = TimedStep(task)
            return self.prepared[key].seconds(), {"warm-up, s": self.prepared[key].first_seconds}
        answer = _run(self.context, "timed_steps", task, environment)
        return answer["seconds"], {"warm-up, s": answer["first_seconds"], "peak MB": answer["peak_bytes"] / 1e6}


def step_task(context: Context, kind: str, batch: Path, counts: Mapping[str, int]) -> dict[str, Any]:
    """Settings of :class:`benchmarks.harness.tasks.TimedStep`."""
    settings = context.settings
    model = settings.config.to_dict()
    return {"kind": kind, "model": model, "batch": str(batch), "device": settings.device, **counts}


def peak_table(context: Context) -> Table:
    """Peak resident memory of a process that trains three steps; on a GPU, what torch allocated there."""
    settings = context.settings
    table = Table(PEAK, "MB", higher_is_better=False, baseline=SQAT)
    what = "torch.cuda.max_memory_allocated" if settings.device == "cuda" else "the whole process, Python included"
    table.notes.append(f"batches of {settings.batch_size} × {settings.config.context_length}; {what}")
    tasks = {SQAT: ("sqat_training", sqat_task(context, MEMORY_STEPS))}
    for name, library in _snippets(context, table).items():
        tasks[name] = ("card_snippet", snippet_task(context, library, MEMORY_STEPS))
    if settings.config.is_moe and context.has("transformers"):
        batch = save_batch(plain(context.workload.batch()), context.folder / "memory-batch.safetensors")
        for backend in EXPERTS:
            step = step_task(context, f"qwen3 {backend}", batch, MEMORY_STEPS)
            tasks[f"transformers {backend}"] = ("timed_steps", step)

    def peak(task: str, child: Mapping[str, Any]) -> Sample:
        return Sample(_run(context, task, child)["peak_bytes"] / 1e6)

    candidates: dict[str, Candidate] = {name: partial(peak, *task) for name, task in tasks.items()}
    return alternate(table, candidates, rounds=1, warmup=False, deadline=context.deadline)


def cache_table() -> Table:
    """Computed, not measured: bytes that every token adds to the key/value cache, until a window is full."""
    table = Table(CACHE, "bytes/token", higher_is_better=False, notes=["computed from head counts, 16-bit values"])
    for name in PRESETS:
        config = preset(name)
        whole = kv_bytes(config, config.context_length)
        table.series.append(Series(name, [float(kv_bytes_per_token(config))], {"MB at the context": whole / 1e6}))
    return table
