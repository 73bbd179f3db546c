"""What a training run needs of what it is called with."""

from __future__ import annotations

import math

import torch

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.dataset import AutoregressiveLMDataset
from sqat.errors import ConfigError, TrainingError


def require_dataset(dataset: object, name: str, model: ExperimentalAttentionTransformer) -> AutoregressiveLMDataset:
    """The data set, unless it is none or made with another model's tokenizer: a ConfigError naming it then."""
    if not isinstance(dataset, AutoregressiveLMDataset):
        raise ConfigError(f"{name} is {dataset!r}, but must be an AutoregressiveLMDataset")
    size, model_size = dataset.tokens.vocab_size, model.model.config.vocab_size
    if size > model_size:
        right = f"made with the model's tokenizer, of at most {model_size}"
        raise ConfigError(f"{name} is of a vocabulary of {size}, but must be {right}")
    return dataset


def require_optimizer(
    optimizer: torch.optim.Optimizer | None, model: ExperimentalAttentionTransformer
) -> torch.optim.Optimizer:
    """The optimizer, unless it is none or of other parameters than the model's: a ConfigError then."""
    own = set(model.parameters())
    if optimizer is None or not all(p in own for group in optimizer.param_groups for p in group["params"]):
        found = "None" if optimizer is None else f"{type(optimizer).__name__} of other parameters"
        right = "made from this model's parameters, such as torch.optim.AdamW(model.parameters(), lr=2e-3)"
        raise ConfigError(f"optimizer is {found}, but must be {right}")
    return optimizer


def require_finite(loss: float, batch_idx: int) -> None:
    """Raise a TrainingError where the loss is no longer a number."""
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at batch {batch_idx}; a lower learning rate or a warm-up may help")
