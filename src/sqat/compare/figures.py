"""What one finished run has to tell: a line of results.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from sqat.bench.child import peak_rss_bytes
from sqat.bench.environment import environment
from sqat.compare.budget import training_flops_per_token
from sqat.compare.folder import Folder
from sqat.compare.plan import ComparePlan, Variant
from sqat.compare.probes import score_probes
from sqat.cost import kv_bytes_per_token, parameters
from sqat.errors import DataError
from sqat.generate import SamplingConfig, generate
from sqat.train import Trainer
from sqat.train.run import METRICS_FILE
from sqat.untrusted import parse_json

PROMPT = "Once upon a time"
STORY_TOKENS = 160


def run_figures(plan: ComparePlan, variant: Variant, seed: int, trainer: Trainer) -> dict[str, Any]:
    """Everything but what the timing pass measures; curves come from the run's own log."""
    state, cost = trainer.state, training_flops_per_token(variant)
    counted = parameters(variant.model)
    assert trainer.out is not None
    log = read_log(trainer.out / METRICS_FILE)
    seconds = _seconds(log)
    cuda = trainer.device.type == "cuda"
    return {
        "variant": variant.name,
        "seed": seed,
        "model": variant.model.to_dict(),
        "num_heads": variant.model.num_heads,
        "parameters": {"total": counted.total, "active": counted.active},
        "flops_per_token": cost,
        "kv_bytes_per_token": kv_bytes_per_token(variant.model),
        "steps": state.step,
        "tokens": state.tokens,
        "flops": cost * state.tokens,
        "evaluation": state.evaluation,
        "curve": [_point(line, cost, "accuracy", "bits_per_byte") for line in log if line["kind"] == "validation"],
        "train_curve": [_point(line, cost, "router_max_load") for line in log if line["kind"] == "train"],
        "seconds": seconds,
        "tokens_per_second": state.tokens / seconds if seconds else None,
        "shared_machine": (trainer.out / Folder.SHARED).exists(),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else peak_rss_bytes(),
        "probes": _probes(plan, trainer),
        "stories": _stories(plan, trainer, seed),
        "environment": environment(),
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics file. Raises DataError for a damaged one."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            lines.append(parse_json(line, finite=False))
        except ValueError as error:
            raise DataError(f"{path}, line {number} is damaged: {error}") from error
    return lines


def _point(line: dict[str, Any], cost: float, *more: str) -> dict[str, Any]:
    loss = math.nan if line["loss"] is None else line["loss"]  # which the log writes for what is no number
    point = {"step": line["step"], "tokens": line["tokens"], "flops": cost * line["tokens"], "loss": loss}
    return {**point, **{name: line[name] for name in more if name in line}}


def _seconds(log: list[dict[str, Any]]) -> float:
    """Of training steps alone, over all sittings of a run that was stopped in between."""
    seconds, tokens = 0.0, 0
    for line in log:
        if line["kind"] == "train":
            seconds += (line["tokens"] - tokens) / line["tokens_per_second"]
            tokens = line["tokens"]
    return seconds


def _probes(plan: ComparePlan, trainer: Trainer) -> dict[str, Any] | None:
    """Only for models of the built-in stories, which the probes ask about."""
    if not plan.probes or plan.data.source.partition(":")[0] != "stories" or trainer.tokenizer is None:
        return None
    return score_probes(trainer.model, trainer.tokenizer, plan.probes)._asdict()


def _stories(plan: ComparePlan, trainer: Trainer, seed: int) -> list[str]:
    if not plan.stories or trainer.tokenizer is None:
        return []
    config = SamplingConfig(temperature=0.7, top_p=0.95, max_tokens=STORY_TOKENS, seed=seed)
    answers = generate(trainer.model, trainer.tokenizer, [PROMPT] * plan.stories, config)
    return [PROMPT + answer.text for answer in answers]
