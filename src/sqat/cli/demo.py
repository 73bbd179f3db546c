"""`sqat demo`: from nothing to a story in a few minutes, offline."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

# Sized for about two minutes on two cores.
DEMO = {
    "model": "sqat-xs",
    "data": {"validation_limit": 200},
    "train": {
        "max_steps": 400,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 20,
        "checkpoint_every": 100,
        "evaluate_first": True,
    },
}
PROMPT = "Once upon a time"


def demo(
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps.")] = 400,
    stories: Annotated[int, typer.Option(help="Built-in stories to learn from.")] = 20_000,
) -> None:
    """Train a small SQA model on the built-in stories, then let it write one. Needs no network."""
    from sqat.cli.console import console
    from sqat.cli.generate import print_stream
    from sqat.cli.training import run
    from sqat.generate import SamplingConfig
    from sqat.load import load_with_tokenizer
    from sqat.run_config import RunConfig, with_overrides
    from sqat.train import start_run
    from sqat.train.checkpoints import list_checkpoints

    tried = (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))
    out = next(folder for folder in itertools.chain([out], tried) if not folder.exists())
    console.rule("1 · training on the built-in stories")
    overrides = [f"train.max_steps={steps}", f"data.source=stories:{stories}"]
    run(start_run, RunConfig.from_dict(with_overrides(DEMO, overrides)), out)
    console.rule("2 · a story")
    model, tokenizer = load_with_tokenizer(list_checkpoints(out)[-1])
    print_stream(model, tokenizer, PROMPT, SamplingConfig(temperature=0.7))
    console.rule("3 · try next")
    for line in (
        f'sqat generate {out} "One day, a little cat" -n 3',
        "sqat train sqat-xs --data stories:20000 --batch-size 8 --steps 1400  # 6 min; keeps names",
        "sqat train sqat-s --data roneneldan/TinyStories",
    ):
        console.print(line, markup=False, soft_wrap=True)
