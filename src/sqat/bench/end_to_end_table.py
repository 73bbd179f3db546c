"""Training end to end as a user starts it: `sqat train`, and the card's snippet on rxlm and on our import paths."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqat.bench.child import run_child
from sqat.bench.peers import ALLOCATOR, missing
from sqat.bench.results import BenchError, Table
from sqat.bench.settings import Context
from sqat.bench.timing import Candidate, Sample, alternate
from sqat.checkpoint.rxnn import config_to_rxnn
from sqat.errors import ConfigError

END_TO_END = "training end to end"
SQAT, OUR_SNIPPET, RXLM = "sqat train", "card's snippet, our rxnn", "card's snippet, rxlm"
COMPILED = "sqat train, compiled"
RXLM_TUNED = "card's snippet, rxlm, our allocator settings"
NOTES = [
    "real targets (padding never counts) per second of the training loop, waiting for data included",
    "start, tokenizer training, tokenising ahead, validation, saving and the first steps are left out",
]
STEPS = {"cpu": {"warmup": 6, "steps": 14}, "cuda": {"warmup": 10, "steps": 60}}
QUICK_STEPS = {"warmup": 1, "steps": 3}
CARD_TOKENS = 2.3e9
CARD_MINUTES = {"xsqat-mm": 383, "sqat-mm": 387, "ssqat-mm": 390, "gqa-ref-micro": 398, "mqa-ref-micro": 399}  # one L4


def end_to_end_table(context: Context) -> Table:
    """Real targets per second, every measurement in a process of its own."""
    settings = context.settings
    table = Table(END_TO_END, "real tokens/s", baseline=RXLM, notes=list(NOTES))
    candidates: dict[str, Candidate] = {SQAT: partial(_sqat_run, context)}
    if settings.compiled:
        candidates[COMPILED] = partial(_sqat_run, context, compiled=True)
    try:
        arguments = config_to_rxnn(settings.config)
    except ConfigError as error:  # a model that the card's framework cannot hold
        table.skipped |= dict.fromkeys((OUR_SNIPPET, RXLM), str(error))
    else:
        candidates[OUR_SNIPPET] = partial(_snippet_run, context, "rxnn", arguments)
        if not missing("rxlm"):
            candidates[RXLM] = partial(_snippet_run, context, "rxlm", arguments)
            if settings.device == "cpu":
                candidates[RXLM_TUNED] = partial(_snippet_run, context, "rxlm", arguments, ALLOCATOR)
    alternate(table, candidates, **context.alternation, warmup=False)
    if settings.device == "cuda" and not settings.quick:
        add_card_minutes(table, settings.model)
    return table


def add_card_minutes(table: Table, model: str) -> None:
    """How long the card's training would take at each rate, beside what it took."""
    for series in table.series:
        series.figures["minutes for 2.3 B"] = CARD_TOKENS / series.spread.median / 60
    if model in CARD_MINUTES:
        table.notes.append(f"the card took {CARD_MINUTES[model]} minutes for 2.3 B tokens on one L4")


def step_counts(context: Context) -> dict[str, int]:
    """Steps of one measurement, and how many of them come first and do not count."""
    return QUICK_STEPS if context.settings.quick else STEPS[context.settings.device]


def _sqat_run(context: Context, compiled: bool = False) -> Sample:
    return _measure(context, "sqat-train", sqat_task(context, step_counts(context), compiled))


def sqat_task(context: Context, counts: Mapping[str, int], compiled: bool = False) -> dict[str, Any]:
    """What the child is told for `sqat train`: the command's defaults, but for these fields."""
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
    out = tempfile.mkdtemp(prefix="run-", dir=context.folder)
    return {"run": run, "out": out, "device": settings.device, **counts}


def snippet_task(
    context: Context, library: str, arguments: Mapping[str, Any], counts: Mapping[str, int]
) -> dict[str, Any]:
    """What the child is told for the card's snippet; `arguments` are those of its model class."""
    return {
        "library": library,
        "arguments": dict(arguments),
        "tokenizer": str(context.workload.tokenizer),
        "texts": str(context.workload.texts),
        "batch_size": context.settings.batch_size,
        "seq_len": context.settings.config.context_length,
        "log_dir": str(context.folder / "tensorboard"),
        "device": context.settings.device,
        **counts,
    }


def _snippet_run(
    context: Context, library: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Sample:
    task = snippet_task(context, library, arguments, step_counts(context))
    return _measure(context, "card-snippet", task, environment)


def _measure(
    context: Context, task: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Sample:
    answer = run_child(task, settings, timeout=context.seconds_left(), environment=environment)
    if answer["seconds"] <= 0:
        raise BenchError(f"{task} measured no time")
    figures = {"data wait": answer["data_wait"], "peak MB": answer["peak_bytes"] / 1e6}
    return Sample(answer["tokens"] / answer["seconds"], figures)
