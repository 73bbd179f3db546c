"""RxNN's callbacks: they observe a training run, print, count, save and upload, or stop it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rxnn.experimental.models import ExperimentalAttentionTransformer as Model
from sqat.config import require, require_positive
from sqat.durable import remove_folder
from sqat.errors import CheckpointError
from sqat.hub import require_repo_id, upload
from sqat.store import write_folder

FINAL_FOLDER = "final_model"


class TrainerCallback:
    """The base class: override what you need. Training stops if `on_batch_end`, `on_validation_end` or `on_epoch_end`
    returns something true.
    """

    def on_training_start(self, trainer: Any) -> None:
        """Called before the first epoch, with the :class:`rxnn.training.bml.AutoregressiveTrainer`."""

    def on_epoch_start(self, model: Model, epoch: int) -> None:
        """Called before each epoch; the first is 0."""

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> bool | None:
        """Called after each batch.

        Args:
            batch_idx: number in the epoch, from 0.
            loss: a scalar, the loss of the optimizer step that the batch was part of; on the model's device, so reading
                it waits for the device.
            batch: `input_ids`, `attention_mask` and `targets`, each (batch, max_seq_len), on the CPU.
        """

    def on_validation_end(
        self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]
    ) -> bool | None:
        """Called after each evaluation.

        Args:
            val_loss: over real tokens, or, with `padding_as_target`, over padding too.
            val_metrics: `loss` (the same), its `accuracy` (%) and `label`, which says what both count; always
                `real_loss`, `real_accuracy`, `padded_loss`, `padded_accuracy` (with padding) and `bits_per_byte`.
        """

    def on_epoch_end(self, model: Model, epoch: int) -> bool | None:
        """Called after each epoch and its evaluation."""

    def on_training_end(self, model: Model) -> None:
        """Called after the last epoch, or once a callback has stopped training."""


@dataclass(eq=False)
class PrintLossCallback(TrainerCallback):
    """Prints training and validation losses, and what they count.

    Args:
        batch_log_interval: batches between lines.
        batches_per_epoch: shown in the lines.

    Raises:
        ConfigError: an interval below 1.
    """

    batch_log_interval: int = 100
    batches_per_epoch: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "batch_log_interval")
        self.label = ""
        self.epoch = 0

    def on_training_start(self, trainer: Any) -> None:
        self.label = trainer.training_label

    def on_epoch_start(self, model: Model, epoch: int) -> None:
        self.epoch = epoch

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> None:
        if (batch_idx + 1) % self.batch_log_interval == 0:
            of = f" / {self.batches_per_epoch}" if self.batches_per_epoch else ""
            print(f"Epoch {self.epoch}, batch {batch_idx + 1}{of}: training loss {float(loss):.4f} ({self.label})")

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> None:
        print(f"Epoch {epoch}: validation loss {val_loss:.4f} ({val_metrics['label']})")


class PrintAccuracyCallback(TrainerCallback):
    """Prints validation accuracy, over real tokens and with padding counted."""

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> None:
        real, padded = val_metrics["real_accuracy"], val_metrics["padded_accuracy"]
        print(f"Epoch {epoch}: validation accuracy {real:.2f}% (real tokens), {padded:.2f}% (padding counted, as RxNN)")


@dataclass(eq=False)
class TokenCounterCallback(TrainerCallback):
    """Counts the real tokens of training, and prints the count.

    Args:
        limit: training stops at this many tokens.
        batch_log_interval: batches between printed lines.

    Raises:
        ConfigError: a limit or interval below 1.
    """

    limit: int | None = None
    batch_log_interval: int = 100

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, self, "limit", "at least 1, or None for no limit")
        require_positive(self, "batch_log_interval")
        self.total_tokens = 0

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> bool:
        self.total_tokens += int(batch["attention_mask"].sum())
        if (batch_idx + 1) % self.batch_log_interval == 0:
            print(f"Tokens: {self.total_tokens:,}")
        if self.limit is None or self.total_tokens < self.limit:
            return False
        print(f"Stopping: the limit of {self.limit:,} tokens is reached")
        return True

    def on_training_end(self, model: Model) -> None:
        print(f"Total tokens: {self.total_tokens:,}")


@dataclass(eq=False)
class ModelSaveCallback(TrainerCallback):
    """Saves the model after every evaluation with a new lowest loss, and at the end of training.

    A save that fails is an error. An upload that fails is printed, and training goes on.

    Args:
        save_dir: the folder for `epoch_…_val_loss_…` and `final_model`.
        max_keep: how many of the newest checkpoints to keep.
        push_to_hub: upload to `hub_model_id`, created if needed (`private_repo`), with `hf_token`.
        push_checkpoint_weights: upload checkpoints as well as the final model.
        final_commit_message: for the final model; "Final model" by default.

    Raises:
        ConfigError: an unusable argument.
    """

    save_dir: str | Path
    max_keep: int = 3
    push_to_hub: bool = False
    hub_model_id: str | None = None
    private_repo: bool = False
    hf_token: str | None = field(default=None, repr=False)
    push_checkpoint_weights: bool = True
    final_commit_message: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "max_keep")
        self.repo_id = require_repo_id(self.hub_model_id, "hub_model_id") if self.push_to_hub else None
        self.best_loss = float("inf")
        self.checkpoints: list[Path] = []

    def on_validation_end(self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]) -> None:
        if val_loss < self.best_loss:  # never true of NaN
            self.best_loss = val_loss
            folder = self._save(model, f"epoch_{epoch}_val_loss_{val_loss:.4f}")
            if self.push_checkpoint_weights:
                self._push(folder, f"Epoch {epoch} - Val loss {val_loss:.4f}")
            self.checkpoints = [path for path in self.checkpoints if path != folder] + [folder]
            while len(self.checkpoints) > self.max_keep:
                remove_folder(self.checkpoints.pop(0))

    def on_training_end(self, model: Model) -> None:
        self._push(self._save(model, FINAL_FOLDER), self.final_commit_message or "Final model")

    def _save(self, model: Model, name: str) -> Path:
        folder = Path(self.save_dir) / name
        with write_folder(folder) as temporary:  # a whole new folder, so that no file of an earlier run stays in it
            model.save_pretrained(temporary)
        print(f"Saved {folder}")
        return folder

    def _push(self, folder: Path, message: str) -> None:
        if self.repo_id is None:
            return
        try:
            upload(folder, self.repo_id, message, private=self.private_repo, token=self.hf_token)
            print(f"Uploaded {folder} to {self.repo_id}")
        except CheckpointError as error:
            print(f"Upload failed: {error}. The files stay in {folder}")
