"""RxNN's trainer: epochs over padded rows, each step through :func:`sqat.train.step.train_step`."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.callbacks import TrainerCallback
from rxnn.training.dataset import AutoregressiveLMDataset
from sqat.config import require, require_choice, require_positive
from sqat.data.batches import Batch, Batches, BatchState
from sqat.data.tokenizer import PAD
from sqat.errors import ConfigError, TrainingError
from sqat.train.callbacks import tensorboard_available
from sqat.train.evaluate import evaluate
from sqat.train.step import TrainingLoss, keep_freed_memory, suitable_shards, train_step

CLIP_NORM = 1.0


@dataclass(eq=False, repr=False)
class AutoregressiveTrainer:
    """Trains a model to predict the next token.

    By default padding is not a target, the router loss balances the experts, and every batch of an epoch counts,
    including the last one. `padding_as_target=True, router_loss="rxnn"` trains and scores as RxNN 0.1.59 did, with two
    exceptions: RxNN dropped the last batch, and added the router loss left from training to its validation loss.

    Args:
        model: moved to `device` and trained in place.
        device: where to train.
        vocab_size: checked against the model's.
        use_amp: run matrix products in `dtype`, by autocast.
        dtype: `torch.bfloat16`, the default and only choice.
        dataset, validation_dataset, optimizer: may also be given when the trainer is called.
        callbacks: see :class:`rxnn.training.callbacks.TrainerCallback`.
        log_dir: folder for TensorBoard scalars.
        use_moe_aux_loss, moe_aux_loss_scale: whether to add the router loss, and its weight.
        gradient_accumulation_steps: batches per optimizer step; together they count as one batch.
        tensorboard_interval: batches between scalars.
        padding_as_target: whether padding counts as a target, in training and in the metrics shown.
        router_loss: "balanced", or "rxnn" for RxNN's form, which does not balance.

    Raises:
        ConfigError: an unusable argument; the message names it and says what would be right.
    """

    model: ExperimentalAttentionTransformer
    device: torch.device | str
    vocab_size: int | None = None
    use_amp: bool = False
    dtype: torch.dtype | None = None
    dataset: AutoregressiveLMDataset | None = None
    validation_dataset: AutoregressiveLMDataset | None = None
    callbacks: Sequence[TrainerCallback] | None = None
    log_dir: str | None = None
    use_moe_aux_loss: bool = False
    moe_aux_loss_scale: float = 0.01
    gradient_accumulation_steps: int = 1
    tensorboard_interval: int = 10
    optimizer: torch.optim.Optimizer | None = None
    _: KW_ONLY
    padding_as_target: bool = False
    router_loss: str = "balanced"

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self.total_batches = 0
        self.total_tokens = 0  # without padding
        size = self.model.model.config.vocab_size
        require(self.vocab_size in (None, size), self, "vocab_size", f"{size}, the model's")
        right = "torch.bfloat16, which needs no loss scaling" if self.use_amp else "left out, or used with use_amp=True"
        require(self.dtype in (None, torch.bfloat16 if self.use_amp else torch.float32), self, "dtype", right)
        require_positive(self, "gradient_accumulation_steps")
        require_positive(self, "tensorboard_interval")
        self.router_loss = {"card": "rxnn"}.get(self.router_loss, self.router_loss)  # its former name
        require_choice(self, "router_loss", ("balanced", "rxnn"))
        right = "left out while tensorboard is missing (pip install tensorboard)"
        require(self.log_dir is None or tensorboard_available(), self, "log_dir", right)
        decoder = self.model.to(self.device).model
        if self.device.type == "cpu":
            keep_freed_memory()
        router_loss = self.router_loss if self.use_moe_aux_loss else "none"
        self.task = TrainingLoss(decoder, router_loss, self.moe_aux_loss_scale, shards=suitable_shards(decoder))

    @property
    def training_label(self) -> str:
        """What the training losses count, for whoever prints them."""
        return "padding counted, router loss added, as RxNN" if self.padding_as_target else "real tokens"

    def __call__(
        self,
        epochs: int,
        batch_size: int,
        dataset: AutoregressiveLMDataset | None = None,
        validation_dataset: AutoregressiveLMDataset | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> None:
        """Train, and evaluate after each epoch, even one that a callback stopped early.

        Every epoch shuffles the rows anew, with a seed from torch's generator. Gradients are clipped to norm 1.
        `scheduler`, a learning-rate schedule of torch, steps once per optimizer step.

        Raises:
            ConfigError: an argument is missing or does not fit the model.
            TrainingError: the loss is NaN or infinite.
        """
        dataset = self.dataset if dataset is None else dataset
        validation = self.validation_dataset if validation_dataset is None else validation_dataset
        optimizer = self.optimizer if optimizer is None else optimizer
        if dataset is None or optimizer is None:
            raise ConfigError("dataset or optimizer is None, but must be given here or when the trainer is made")
        size, most = dataset.tokens.vocab_size, self.model.model.config.vocab_size
        if size > most:
            right = f"made with the model's tokenizer, which has at most {most}"
            raise ConfigError(f"dataset has a vocabulary of {size}, but must be {right}")
        batches = Batches(
            dataset.tokens,
            batch_size=batch_size,
            context_length=dataset.max_seq_len,
            mode="rows",
            seed=int(torch.randint(2**62, ())),
            padding_as_target=self.padding_as_target,
        )
        logs: AbstractContextManager[Any] = nullcontext()
        if self.log_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            logs = SummaryWriter(self.log_dir)
        with logs as writer:
            self._tell("on_training_start", self)
            for epoch in range(epochs):
                self._tell("on_epoch_start", self.model, epoch)
                stop = self._train(batches, epoch, optimizer, scheduler, writer)
                if validation is not None:
                    stop |= self._validate(validation, batch_size, epoch, writer)
                if self._tell("on_epoch_end", self.model, epoch) or stop:
                    break
        self._tell("on_training_end", self.model)

    def _train(
        self, batches: Batches, epoch: int, optimizer: torch.optim.Optimizer, scheduler: Any, writer: Any
    ) -> bool:
        """All steps of an epoch; whether to stop."""
        self.model.train()
        optimizer.zero_grad()
        rows = (batch for batch, _ in batches.epoch(BatchState(epoch, 0)))
        batch_idx, stop = 0, False
        while not stop and (group := list(islice(rows, self.gradient_accumulation_steps))):
            loss = self._step(group, optimizer)
            if scheduler is not None:
                scheduler.step()
            for batch in group:
                mask = batch.inputs != PAD
                self.total_batches += 1
                self.total_tokens += int(mask.sum())
                if self.total_batches % self.tensorboard_interval == 0:
                    more = {"Processed tokens": self.total_tokens}
                    _log(writer, "train", _finite(loss, batch_idx), more, self.total_batches)
                seen = {"input_ids": batch.inputs, "attention_mask": mask.long(), "targets": batch.inputs}
                stop |= self._tell("on_batch_end", self.model, batch_idx, loss, seen)
                batch_idx += 1
        _finite(loss, batch_idx)
        return stop

    def _step(self, group: list[Batch], optimizer: torch.optim.Optimizer) -> Tensor:
        """One optimizer step; returns the loss to show, still on the device."""
        targets = max(sum(batch.num_targets for batch in group), 1)
        group = [batch.to(self.device) for batch in group]
        with self._autocast():
            sums = train_step(self.task, group, optimizer, total_targets=targets, clip_norm=CLIP_NORM)
        loss = sums["loss"] / targets
        return loss + self.moe_aux_loss_scale * sums["router_loss"] if self.padding_as_target else loss

    def _validate(self, validation: AutoregressiveLMDataset, batch_size: int, epoch: int, writer: Any) -> bool:
        """Evaluate, log, and tell the callbacks; whether to stop."""
        result = evaluate(
            self.model.model,
            validation.tokens,
            batch_size=batch_size,
            context_length=validation.max_seq_len,
            padded_metrics=True,
            autocast=self._autocast(),
        )
        metrics: dict[str, Any] = {
            "real_loss": result.loss,
            "real_accuracy": 100 * result.accuracy,
            "padded_loss": result.padded_loss,
            "padded_accuracy": 100 * (result.padded_accuracy or 0.0),
            "bits_per_byte": result.bits_per_byte,
        }
        kind, label = ("padded", "padding counted, as RxNN") if self.padding_as_target else ("real", "real tokens")
        loss, accuracy = metrics[f"{kind}_loss"], metrics[f"{kind}_accuracy"]
        _log(writer, "Valid", loss, {"Accuracy/Valid": accuracy}, epoch)
        metrics |= {"loss": loss, "accuracy": accuracy, "label": label}
        return self._tell("on_validation_end", self.model, epoch, loss, metrics)

    def _tell(self, hook: str, *arguments: object) -> bool:
        """Call a method of every callback; whether any returned something true."""
        answers = [getattr(callback, hook)(*arguments) for callback in self.callbacks or ()]  # ask all, then decide
        return any(answers)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.use_amp)


def _log(writer: Any, part: str, loss: float, more: Mapping[str, float], step: int) -> None:
    if writer is not None:
        scalars = {f"Loss/{part}": loss, f"Perplexity/{part}": math.exp(min(loss, 700.0)), **more}
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)


def _finite(loss: Tensor, batch_idx: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at batch {batch_idx}; a lower learning rate or a warm-up may help")
    return float(loss)
