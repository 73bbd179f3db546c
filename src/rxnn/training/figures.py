"""Which losses and accuracies a run shows: of real tokens, or RxNN's, which count padding. What is shown says which."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from sqat.errors import ConfigError
from sqat.train.callbacks import tensorboard_available
from sqat.train.evaluate import Evaluation

Loss = TypeVar("Loss", float, Tensor)


class Figures(NamedTuple):
    """The choice between the two; `router_weight` is what the router loss is multiplied by."""

    as_card: bool
    router_weight: float

    @property
    def training_label(self) -> str:
        return "padding counted, router loss added, as RxNN" if self.as_card else "real tokens"

    @property
    def validation_label(self) -> str:
        return "padding counted, as RxNN" if self.as_card else "real tokens"

    def training_loss(self, cross_entropy: Loss, router_loss: Loss) -> Loss:
        """What is shown of a step; the loss that is trained on has the router loss in it either way."""
        return cross_entropy + self.router_weight * router_loss if self.as_card else cross_entropy

    def validation_metrics(self, result: Evaluation) -> dict[str, Any]:
        """What callbacks get, see :meth:`rxnn.training.trainer_callback.TrainerCallback.on_validation_end`."""
        both: dict[str, Any] = {
            "real_loss": result.loss,
            "real_accuracy": 100 * result.accuracy,
            "card_loss": result.card_loss,
            "card_accuracy": 100 * (result.card_accuracy or 0.0),
        }
        kind = "card" if self.as_card else "real"
        chosen = {"loss": both[f"{kind}_loss"], "accuracy": both[f"{kind}_accuracy"], "label": self.validation_label}
        return {**chosen, **both, "bits_per_byte": result.bits_per_byte}


class TensorBoardLog:
    """RxNN's scalars; without a folder, nothing.

    Raises:
        ConfigError: a folder, but no `tensorboard`.
    """

    def __init__(self, log_dir: str | None) -> None:
        self.writer: Any = None
        if log_dir is None:
            return
        if not tensorboard_available():
            right = "left out while tensorboard is missing (pip install tensorboard)"
            raise ConfigError(f"log_dir is {log_dir!r}, but must be {right}")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir)

    def training(self, loss: float, batches: int, tokens: int) -> None:
        self._add({"Loss/train": loss, "Perplexity/train": _perplexity(loss), "Processed tokens": tokens}, batches)

    def validation(self, loss: float, accuracy: float, epoch: int) -> None:
        self._add({"Loss/Valid": loss, "Perplexity/Valid": _perplexity(loss), "Accuracy/Valid": accuracy}, epoch)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _add(self, scalars: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
