"""RxNN's learning-rate schedule, and its arithmetic of steps."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR

from sqat.errors import ConfigError
from sqat.train.optim import cosine_with_warmup


def get_transformer_lr_scheduler(
    optimizer: torch.optim.Optimizer, num_training_steps: int, warmup_steps: int = 0
) -> LambdaLR:
    """Linear warm-up to the optimizer's learning rate, then a half cosine that reaches 0 at `num_training_steps`.

    Afterwards the rate stays 0, whereas torch's `CosineAnnealingLR`, which RxNN uses, would rise again. That matters:
    the model card's arithmetic gives fewer steps than its epochs have batches.

    Raises:
        ConfigError: fewer than one step, or a warm-up that is negative or takes all steps.
    """
    if num_training_steps < 1:
        right = "at least 1: an epoch needs two batches for one step, by RxNN's arithmetic"
        raise ConfigError(f"num_training_steps is {num_training_steps}, but must be {right}")
    if not 0 <= warmup_steps < num_training_steps:
        right = f"from 0 to below num_training_steps ({num_training_steps})"
        raise ConfigError(f"warmup_steps is {warmup_steps}, but must be {right}")
    return LambdaLR(
        optimizer,
        lambda step: cosine_with_warmup(step, peak=1.0, total_steps=num_training_steps, warmup_steps=warmup_steps),
    )


def calculate_steps(
    dataset_size: int,
    epochs: int,
    batch_size: int,
    warmup_ratio: float = 0.0,
    num_workers: int = 1,
    gradient_accumulation_steps: int = 1,
    verbose: bool = True,
) -> dict[str, int]:
    """RxNN's arithmetic: {"total": steps, "warmup": steps, "epoch": batches per epoch and worker}.

    Raises:
        ConfigError: a count below 1, or a ratio outside [0, 1).
    """
    counts = {
        "dataset_size": dataset_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "gradient_accumulation_steps": gradient_accumulation_steps,
    }
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1")
    if not 0 <= warmup_ratio < 1:
        raise ConfigError(f"warmup_ratio is {warmup_ratio}, but must be at least 0 and below 1")
    epoch = int((dataset_size / batch_size - 1) // num_workers)
    total = int(epochs * epoch / gradient_accumulation_steps)
    steps = {"total": total, "warmup": int(warmup_ratio * total), "epoch": epoch}
    if verbose:
        print(f"Steps: {total:,} in total, {steps['warmup']:,} of warm-up; {epoch:,} batches per epoch")
    return steps
