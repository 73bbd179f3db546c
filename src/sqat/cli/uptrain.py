"""`sqat uptrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqat.cli import training


def uptrain(
    model: Annotated[str, typer.Argument(help="A stock checkpoint, such as `sqat convert` writes: folder or Hub id.")],
    tokens: Annotated[int | None, typer.Option(help="Training targets, to the nearest step.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The model it was made of; without it, cross-entropy alone.")
    ] = None,
    data: training.Data = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/uptrain-NAME.")] = None,
    validation: training.Validation = None,
    kl_weight: Annotated[float | None, typer.Option(help="Of KL to the teacher beside cross-entropy.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a row; default: the model's, at most 1,024.")] = None,
    batch_size: training.BatchSize = None,
    lr: training.LearningRate = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data order and dropout.")] = None,
    device: training.Device = None,
    set_: training.Set = None,
    resume: training.Resume = False,
    accept_new_data: training.AcceptNewData = False,
) -> None:
    """Train a stock model further, towards a teacher's logits; checkpoints are stock checkpoints.

    Ctrl-C saves a checkpoint; the same command with --resume continues bit for bit like an uninterrupted run.
    """
    from sqat.errors import ConfigError
    from sqat.run_config import with_overrides
    from sqat.uptrain_config import UptrainConfig

    if tokens is None:
        raise ConfigError("--tokens is missing, but must be the number of tokens to train on, such as 1_000_000")
    options = {
        "model.path": model,
        "model.tokens": tokens,
        "model.teacher": teacher,
        "model.kl_weight": kl_weight,
        "model.context_length": context,
        "data.source": data,
        "data.validation": validation,
        "train.batch_size": batch_size,
        "train.learning_rate": lr,
        "train.seed": seed,
        "train.device": device,
    }
    config = UptrainConfig.from_dict(with_overrides({}, training.overrides(options, set_)))
    folder = out or Path("runs") / f"uptrain-{Path(model).name}"
    from sqat.convert.uptrain import start_uptraining

    training.run(start_uptraining, config, folder, resume=resume, accept_new_data=accept_new_data)
