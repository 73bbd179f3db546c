"""RxNN's learning-rate schedule."""

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
