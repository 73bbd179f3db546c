"""RxNN's callbacks: what watches a training run, prints, counts, saves, stops it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rxnn.training.model_saving import ModelSaveCallback
from rxnn.training.trainer_callback import TrainerCallback
from sqat.config import require, require_positive

if TYPE_CHECKING:
    from rxnn.experimental.models import ExperimentalAttentionTransformer as Model
    from rxnn.training.bml import AutoregressiveTrainer

__all__ = [
    "EarlyStoppageCallback",
    "ModelSaveCallback",
    "PrintAccuracyCallback",
    "PrintLossCallback",
    "TokenCounterCallback",
    "TrainerCallback",
]

_NOT_JOINT = "False: joint training of several models is not part of this package"


class PrintLossCallback(TrainerCallback):
    """Prints training and validation losses, and what they count.

    Args:
        batch_log_interval: batches between lines.
        joint_mode: False; joint training of several models is not part of this package.
        batches_per_epoch: for the lines only.

    Raises:
        ConfigError: an interval below 1, or `joint_mode`.
    """

    def __init__(
        self, batch_log_interval: int = 100, joint_mode: bool = False, batches_per_epoch: int | None = None
    ) -> None:
        self.batch_log_interval = batch_log_interval
        self.joint_mode = joint_mode
        self.of = f" / {batches_per_epoch}" if batches_per_epoch else ""
        self.label = ""
        self.epoch = 0
        require_positive(self, "batch_log_interval")
        require(not joint_mode, self, "joint_mode", _NOT_JOINT)

    def on_training_start(self, trainer: AutoregressiveTrainer) -> None:
        self.label = trainer.figures.training_label

    def on_epoch_start(self, model: Model, epoch: int) -> None:
        self.epoch = epoch

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> None:
        if (batch_idx + 1) % self.batch_log_interval == 0:
            print(f"Epoch {self.epoch}, batch {batch_idx + 1}{self.of}: training loss {float(loss):.4f} ({self.label})")

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> None:
        print(f"Epoch {epoch}: validation loss {val_loss:.4f} ({val_metrics['label']})")


class PrintAccuracyCallback(TrainerCallback):
    """Prints validation accuracy, of real tokens and with padding counted. Raises ConfigError for `joint_mode`."""

    def __init__(self, joint_mode: bool = False) -> None:
        self.joint_mode = joint_mode
        require(not joint_mode, self, "joint_mode", _NOT_JOINT)

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> None:
        real, card = val_metrics["real_accuracy"], val_metrics["card_accuracy"]
        print(f"Epoch {epoch}: validation accuracy {real:.2f}% (real tokens), {card:.2f}% (padding counted, as RxNN)")


class TokenCounterCallback(TrainerCallback):
    """Counts the real tokens trained on.

    Args:
        limit: stops the training once there were as many.
        batch_log_interval: batches between printed lines.

    Raises:
        ConfigError: a limit or interval below 1.
    """

    def __init__(self, limit: int | None = None, batch_log_interval: int = 100) -> None:
        self.limit = limit
        self.batch_log_interval = batch_log_interval
        self.total_tokens = 0
        require(limit is None or limit >= 1, self, "limit", "at least 1, or None for no limit")
        require_positive(self, "batch_log_interval")

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> bool:
        self.total_tokens += int(batch["attention_mask"].sum())
        if (batch_idx + 1) % self.batch_log_interval == 0:
            print(f"Tokens: {self.total_tokens:,}")
        if self.limit is None or self.total_tokens < self.limit:
            return False
        print(f"Stopping: the limit of {self.limit:,} tokens is reached")
        return True

    def on_training_end(self, model: Model) -> None:
        print(f"Tokens in all: {self.total_tokens:,}")

    def get_total_tokens(self) -> int:
        return self.total_tokens


class EarlyStoppageCallback(TrainerCallback):
    """Stops after `num_plateau_epochs` epochs in a row without a better validation loss. Raises ConfigError below 1."""

    def __init__(self, num_plateau_epochs: int = 3) -> None:
        self.num_plateau_epochs = num_plateau_epochs
        self.best_loss = float("inf")
        self.epochs_since = 0
        require_positive(self, "num_plateau_epochs")

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> bool:
        self.epochs_since += 1
        if val_loss < self.best_loss:
            self.best_loss, self.epochs_since = val_loss, 0
        if self.epochs_since < self.num_plateau_epochs:
            return False
        print(f"Stopping: no better validation loss than {self.best_loss:.4f} in {self.num_plateau_epochs} epochs")
        return True
