"""`sqat bench memory`: peak memory of training, and what the key/value cache takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqat.bench.child import run_child
from sqat.bench.end_to_end_table import OUR_SNIPPET, RXLM, SQAT, snippet_task, sqat_task
from sqat.bench.peers import EXPERTS, absent, missing
from sqat.bench.results import NotMeasured, Result, Series, Table
from sqat.bench.settings import Context
from sqat.bench.timing import Candidate, Sample, alternate
from sqat.bench.workload import plain, save_batch
from sqat.checkpoint.rxnn import config_to_rxnn
from sqat.cost import kv_bytes, kv_bytes_per_token
from sqat.errors import ConfigError
from sqat.variants import PRESETS, preset

PEAK = "peak memory of training"
CACHE = "key/value cache"
COUNTS = {"warmup": 1, "steps": 3}


def measure_memory(context: Context) -> Result:
    """Both tables."""
    return Result("memory", [peak_table(context), cache_table()], absent("transformers", "rxlm"))


def peak_table(context: Context) -> Table:
    """Largest resident memory of a process that trains for three steps; on a GPU, what torch allocated there."""
    settings = context.settings
    table = Table(PEAK, "MB", higher_is_better=False, baseline=SQAT)
    shape = f"batches of {settings.batch_size} × {settings.config.context_length}"
    what = "torch.cuda.max_memory_allocated" if settings.device == "cuda" else "the whole process, Python included"
    table.notes.append(f"{shape}; {what}")
    candidates: dict[str, Candidate] = {SQAT: partial(_peak, context, "sqat-train", sqat_task(context, COUNTS))}
    try:
        arguments = config_to_rxnn(settings.config)
    except ConfigError as error:
        table.skipped |= dict.fromkeys((OUR_SNIPPET, RXLM), str(error))
    else:
        for name, library in ((OUR_SNIPPET, "rxnn"), (RXLM, "rxlm")):
            if library == "rxnn" or not missing("rxlm"):
                task = snippet_task(context, library, arguments, COUNTS)
                candidates[name] = partial(_peak, context, "card-snippet", task)
    batch = save_batch(plain(context.workload.batch(settings)), context.folder / "memory-batch.safetensors")
    for backend in EXPERTS if settings.config.is_moe and not missing("transformers") else ():
        step = {"kind": f"qwen3 {backend}", "model": settings.config.to_dict(), "batch": str(batch), **COUNTS}
        candidates[f"transformers {backend}"] = partial(_peak, context, "steps", {**step, "device": settings.device})
    return alternate(table, candidates, rounds=1, warmup=False, deadline=context.deadline)


def _peak(context: Context, task: str, settings: Mapping[str, Any]) -> Sample:
    answer = run_child(task, settings, timeout=context.seconds_left())
    if "not_measured" in answer:
        raise NotMeasured(answer["not_measured"])
    return Sample(answer["peak_bytes"] / 1e6)


def cache_table() -> Table:
    """Computed, not measured: bytes that every token of a stream adds while generating, until a window is full."""
    table = Table(CACHE, "bytes/token", higher_is_better=False, notes=["computed from head counts, 16-bit values"])
    for name in PRESETS:
        config = preset(name)
        size = kv_bytes_per_token(config)
        whole = kv_bytes(config, config.context_length)
        table.series.append(Series(name, [float(size)], {"MB at the context": whole / 1e6}))
    return table
