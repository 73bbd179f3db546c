"""What a callback may do; :mod:`rxnn.training.callbacks` has those there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from rxnn.experimental.models import ExperimentalAttentionTransformer as Model
    from rxnn.training.bml import AutoregressiveTrainer


class TrainerCallback:
    """Override what is of interest. A true answer of `on_batch_end`, `on_validation_end` or `on_epoch_end` stops the
    training.
    """

    def on_training_start(self, trainer: AutoregressiveTrainer) -> None:
        """Before the first epoch."""

    def on_epoch_start(self, model: Model, epoch: int) -> None:
        """Before an epoch; the first is 0."""

    def on_batch_end(self, model: Model, batch_idx: int, loss: Tensor, batch: dict[str, Tensor]) -> bool | None:
        """After each batch of the epoch.

        Args:
            loss: of the step that the batch was in; a scalar on the model's device, which reading it waits for.
            batch: `input_ids`, `attention_mask` and `targets`, each (batch, max_seq_len), on the CPU.
        """

    def on_validation_end(
        self, model: Model, epoch: int, val_loss: float, val_metrics: Mapping[str, Any]
    ) -> bool | None:
        """After an evaluation.

        Args:
            val_loss: of real tokens; with `padding_as_target`, the card's.
            val_metrics: `loss` (the same), its `accuracy` (%) and `label`, what these two count; of both kinds in any
                case `real_loss`, `real_accuracy`, `card_loss`, `card_accuracy`; and `bits_per_byte` of text.
        """

    def on_epoch_end(self, model: Model, epoch: int) -> bool | None:
        """After an epoch and its evaluation."""

    def on_training_end(self, model: Model) -> None:
        """After the last epoch, or when a callback stopped the training."""
