"""One run of a comparison, in a process of its own: `python -m sqat.compare.run OUT VARIANT SEED`.

It goes on from its newest checkpoint, and at the end writes result.json, which becomes a line of results.jsonl.
"""

import json
import logging
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from sqat.bench import environment, peak_memory_bytes
from sqat.compare.folder import Folder, read_results
from sqat.compare.plan import ComparePlan, training_flops_per_token
from sqat.compare.probes import score_probes
from sqat.durable import replace_file
from sqat.generate import SamplingConfig, generate_each
from sqat.train import Trainer, start_run
from sqat.train.run import METRICS_FILE

INTERRUPTED = 75  # the exit code of a run that was stopped and can go on (BSD's EX_TEMPFAIL)
PROMPT = "Once upon a time"
STORY_TOKENS = 160


def run(out: Path, name: str, seed: int) -> int:
    """Train a variant with one seed, evaluate it, and write result.json; returns the exit code."""
    folder = Folder(out)
    plan, setup = folder.read_plan(), folder.read_setup()
    torch.set_num_threads(setup.threads)
    target = folder.run(name, seed)
    trainer = start_run(plan.run_config(setup.variants[name], seed), target, resume=True)
    if not trainer.state.finished:
        trainer.train()
    if trainer.interrupted or trainer.signals.received:  # a signal may come too late to interrupt the training
        return INTERRUPTED
    result = {"variant": name, "seed": seed, **run_result(plan, seed, trainer)}
    replace_file(target / folder.RESULT, json.dumps(result))
    return 0


def run_result(plan: ComparePlan, seed: int, trainer: Trainer) -> dict[str, Any]:
    """Everything a report needs to know of a finished run, apart from what the timing pass measures."""
    assert trainer.out is not None
    model, state = trainer.model.config, trainer.state
    cost = training_flops_per_token(model)
    seconds, tokens, curve = 0.0, 0, []
    for line in read_results(trainer.out / METRICS_FILE):
        if line["kind"] == "train":  # of steps alone, over all sittings of a run that was stopped in between
            seconds += (line["tokens"] - tokens) / line["tokens_per_second"]
            tokens = line["tokens"]
        else:
            loss = math.nan if line["loss"] is None else line["loss"]  # the log writes null for NaN and Inf
            point = {name: line[name] for name in ("step", "tokens", "accuracy", "bits_per_byte")}
            curve.append({**point, "loss": loss, "flops": cost * line["tokens"]})
    return {
        "model": model.to_dict(),
        "flops_per_token": cost,
        "steps": state.step,
        "tokens": state.tokens,
        "flops": cost * state.tokens,
        "evaluation": state.evaluation,
        "curve": curve,
        "seconds": seconds,
        "shared_machine": plan.processes > 1,
        "peak_bytes": peak_memory_bytes("cuda" if trainer.device.type == "cuda" else "cpu"),
        "probes": _probes(plan, trainer),
        "stories": _stories(plan, trainer, seed),
        "environment": environment(),
    }


def _probes(plan: ComparePlan, trainer: Trainer) -> dict[str, Any] | None:
    """Recall probes ask about the built-in stories, so only models that learned those are asked."""
    if not plan.probes or plan.data.source.partition(":")[0] != "stories" or trainer.tokenizer is None:
        return None
    return {"accuracy": score_probes(trainer.model, trainer.tokenizer, plan.probes), "number": plan.probes}


def _stories(plan: ComparePlan, trainer: Trainer, seed: int) -> list[str]:
    if not plan.stories or trainer.tokenizer is None:
        return []
    config = SamplingConfig(temperature=0.7, top_p=0.95, max_tokens=STORY_TOKENS, seed=seed)
    answers = generate_each(trainer.model, trainer.tokenizer, [PROMPT] * plan.stories, config)
    return [PROMPT + answer.text for answer in answers]


def stop_with_parent() -> None:
    """Stop this process, as SIGTERM does, once the comparison that started it is gone. Its end of our standard input
    closes even if it was killed.
    """

    def wait() -> None:
        os.read(0, 1)  # nothing ever comes but the end; sys.stdin's own lock would be in the way of a clean exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Entry point of `python -m sqat.compare.run`."""
    stop_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    out, name, seed = sys.argv[1:]
    sys.exit(run(Path(out), name, int(seed)))


if __name__ == "__main__":
    main()
