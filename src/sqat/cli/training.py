"""Options and the run itself, which `sqat train` and `sqat uptrain` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sqat.run_config import RunConfig
    from sqat.train import Trainer
    from sqat.uptrain_config import UptrainConfig

Data = Annotated[str | None, typer.Option(help="Hub data set, folder, file, or `stories[:N]` (built in).")]
Validation = Annotated[str | None, typer.Option(help="Validation data, where --data has no validation split.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows per step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Any other field, as train.warmup_steps=100.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")]
AcceptNewData = Annotated[
    bool, typer.Option("--accept-new-data", help="With --resume: go on although the data have changed.")
]


def overrides(options: dict[str, Any], others: list[str] | None) -> list[str]:
    """`A.B=C` of the options that were given, by their fields, and of the `others`, which come last."""
    return [*(f"{name}={json.dumps(value)}" for name, value in options.items() if value is not None), *(others or [])]


def run(start: Callable[..., Trainer], config: RunConfig | UptrainConfig, out: Path, **resuming: bool) -> None:
    """Train with a progress bar; say what is trained, on what, and where the result is."""
    import torch

    from sqat.cli.console import console, leave_if_interrupted, tokenising
    from sqat.config import ModelConfig
    from sqat.cost import parameters
    from sqat.train.callbacks import ProgressBar
    from sqat.train.checkpoints import best_checkpoint
    from sqat.train.distributed import is_first, leave
    from sqat.train.step import kernels_in_use, use_bf16

    with tokenising() as progress:
        trainer = start(config, out, **resuming, callbacks=[ProgressBar()], progress=progress)
    tokens, model = trainer.batches.tokens, config.model
    facts = [f"{len(tokens):,} documents, {tokens.num_tokens:,} tokens", f"{trainer.total_steps:,} steps"]
    if isinstance(model, ModelConfig):
        heads = f"{model.num_query_heads} of {model.num_heads} query heads, {model.num_kv_heads} key/value"
        facts = [f"{parameters(model).total / 1e6:.2f} M parameters", heads, *facts]
    console.print(" · ".join(facts), soft_wrap=True)
    device = trainer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    precision = "bfloat16 autocast" if use_bf16(config.train.precision, device.type) else "float32"
    kernels = kernels_in_use(config.train.compile, device.type)
    console.print(f"on {name} · {precision} · {kernels}", soft_wrap=True)
    trainer.train()
    if is_first():
        console.print(f"Best checkpoint: {best_checkpoint(out)}", soft_wrap=True)
    leave()
    leave_if_interrupted(trainer)
