"""RxNN's trainer: epochs of padded rows, each step through :func:`sqat.train.step.train_step`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rxnn.experimental.models import ExperimentalAttentionTransformer, require_model
from rxnn.training.dataset import AutoregressiveLMDataset
from rxnn.training.figures import Figures, TensorBoardLog
from rxnn.training.requirements import require_dataset, require_finite, require_optimizer
from rxnn.training.trainer_callback import TrainerCallback
from sqat.config import require, require_choice, require_positive
from sqat.cpu.allocator import keep_freed_memory
from sqat.cpu.shards import suitable_shards
from sqat.data.batches import Batch, Batches, BatchState
from sqat.data.tokenizer import PAD
from sqat.errors import ConfigError
from sqat.train.evaluate import evaluate
from sqat.train.step import TrainingLoss, train_step

CLIP_NORM = 1.0


class Scheduler(Protocol):
    """A learning-rate schedule of torch."""

    def step(self) -> None: ...


class _Run(NamedTuple):
    """What one call of the trainer works with."""

    batches: Batches
    validation: AutoregressiveLMDataset | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    log: TensorBoardLog


class AutoregressiveTrainer:
    """Trains a model to predict the next token.

    By default padding is no target, the router loss balances the experts, and every batch of an epoch counts, the last
    one too. `padding_as_target=True, router_loss="card"` trains and scores as RxNN 0.1.59 did, but for that last batch,
    which it left out, and for its validation loss, to which it added the router loss left over from training.

    Args:
        model: it is moved to `device` and trained in place.
        device: where to train.
        vocab_size: the model's, as a check.
        use_amp: run matrix products in `dtype`, by autocast.
        dtype: `torch.bfloat16`, the default and only choice.
        dataset, validation_dataset, optimizer: may also be given when the trainer is called.
        callbacks: are told what happens.
        log_dir: folder for TensorBoard scalars.
        use_moe_aux_loss, moe_aux_loss_scale: whether and how much the router loss counts.
        gradient_accumulation_steps: batches per step, which count as one.
        target_field_name: "targets", the name that callbacks find them under.
        tensorboard_interval: batches between scalars.
        use_ddp: False; training runs in one process.
        padding_as_target: whether padding counts as a target, in training and in the figures shown.
        router_loss: "balanced", or "card" for RxNN's form, which does not balance.

    Raises:
        ConfigError: an unusable argument; the message names it and says what would be right.
    """

    def __init__(
        self,
        model: ExperimentalAttentionTransformer,
        device: torch.device | str,
        vocab_size: int | None = None,
        use_amp: bool = False,
        dtype: torch.dtype | None = None,
        dataset: AutoregressiveLMDataset | None = None,
        validation_dataset: AutoregressiveLMDataset | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        log_dir: str | None = None,
        use_moe_aux_loss: bool = False,
        moe_aux_loss_scale: float = 0.01,
        gradient_accumulation_steps: int = 1,
        target_field_name: str = "targets",
        tensorboard_interval: int = 10,
        optimizer: torch.optim.Optimizer | None = None,
        use_ddp: bool = False,
        *,
        padding_as_target: bool = False,
        router_loss: str = "balanced",
    ) -> None:
        require_model(model)
        self.model = model
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        self.use_amp = use_amp
        self.dtype = dtype
        self.dataset = dataset
        self.validation_dataset = validation_dataset
        self.callbacks = list(callbacks or ())
        self.log_dir = log_dir
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.target_field_name = target_field_name
        self.tensorboard_interval = tensorboard_interval
        self.optimizer = optimizer
        self.use_ddp = use_ddp
        self.router_loss = router_loss
        self._check()
        self.model.to(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        kind, shards = router_loss if use_moe_aux_loss else "none", suitable_shards(model.model)
        self.task = TrainingLoss(model.model, kind, moe_aux_loss_scale, shards=shards)
        self.figures = Figures(as_card=padding_as_target, router_weight=moe_aux_loss_scale)
        self.total_batches = 0
        self.total_tokens = 0  # real ones

    def _check(self) -> None:
        size = self.model.model.config.vocab_size
        require(self.vocab_size in (None, size), self, "vocab_size", f"{size}, the model's")
        right = "torch.bfloat16, which needs no loss scaling" if self.use_amp else "left out, or used with use_amp=True"
        require(self.dtype in (None, torch.bfloat16 if self.use_amp else torch.float32), self, "dtype", right)
        require_positive(self, "gradient_accumulation_steps")
        require_positive(self, "tensorboard_interval")
        require_choice(self, "router_loss", ("balanced", "card"))
        require(self.target_field_name == "targets", self, "target_field_name", "'targets'")
        require(not self.use_ddp, self, "use_ddp", "False: training runs in one process")
        right = "TrainerCallback objects"
        require(all(isinstance(callback, TrainerCallback) for callback in self.callbacks), self, "callbacks", right)

    def __call__(
        self,
        epochs: int,
        batch_size: int,
        dataset: AutoregressiveLMDataset | None = None,
        validation_dataset: AutoregressiveLMDataset | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        """Train, and evaluate after each epoch, also one that a callback cut short.

        Rows are shuffled anew for every epoch, by torch's generator. Gradients are clipped at norm 1. `scheduler` steps
        with every step of the optimizer.

        Raises:
            ConfigError: something is missing, or does not fit the model.
            TrainingError: the loss is no longer a number.
        """
        if epochs < 1:
            raise ConfigError(f"epochs is {epochs}, but must be at least 1")
        validation = self.validation_dataset if validation_dataset is None else validation_dataset
        run = _Run(
            self._batches(self.dataset if dataset is None else dataset, batch_size),
            None if validation is None else require_dataset(validation, "validation_dataset", self.model),
            require_optimizer(self.optimizer if optimizer is None else optimizer, self.model),
            scheduler,
            TensorBoardLog(self.log_dir),
        )
        try:
            for callback in self.callbacks:
                callback.on_training_start(self)
            for epoch in range(epochs):
                if self._epoch(run, epoch):
                    break
        finally:
            run.log.close()
        for callback in self.callbacks:
            callback.on_training_end(self.model)

    def _epoch(self, run: _Run, epoch: int) -> bool:
        """Train, evaluate, tell the callbacks; whether to stop."""
        for callback in self.callbacks:
            callback.on_epoch_start(self.model, epoch)
        stop = self._train(run, epoch)
        if run.validation is not None:
            stop |= self._validate(run, run.validation, epoch)
        return stop | _any(callback.on_epoch_end(self.model, epoch) for callback in self.callbacks)

    def _train(self, run: _Run, epoch: int) -> bool:
        """All steps of an epoch; whether to stop."""
        self.model.train()
        run.optimizer.zero_grad()
        rows = (batch for batch, _ in run.batches.epoch(BatchState(epoch, 0)))
        batch_idx, stop = 0, False
        while not stop and (group := list(islice(rows, self.gradient_accumulation_steps))):
            loss = self._step(run, group)
            for batch in group:
                stop |= self._after_batch(run, batch, batch_idx, loss)
                batch_idx += 1
        require_finite(float(loss), batch_idx)
        return stop

    def _step(self, run: _Run, group: list[Batch]) -> Tensor:
        """One step of the optimizer over some batches; the loss to show, which is still on the device."""
        targets = max(sum(batch.num_targets for batch in group), 1)
        with self._autocast():
            sums = train_step(
                self.task,
                [batch.to(self.device) for batch in group],
                run.optimizer,
                total_targets=targets,
                clip_norm=CLIP_NORM,
            )
        if run.scheduler is not None:
            run.scheduler.step()
        return self.figures.training_loss(sums["loss"] / targets, sums["router_loss"])

    def _after_batch(self, run: _Run, batch: Batch, batch_idx: int, loss: Tensor) -> bool:
        """Log, tell the callbacks; whether to stop."""
        mask = batch.inputs != PAD
        self.total_batches += 1
        self.total_tokens += int(mask.sum())
        if self.total_batches % self.tensorboard_interval == 0:
            require_finite(float(loss), batch_idx)
            run.log.training(float(loss), self.total_batches, self.total_tokens)
        seen = {"input_ids": batch.inputs, "attention_mask": mask.long(), "targets": batch.inputs}
        return _any(callback.on_batch_end(self.model, batch_idx, loss, seen) for callback in self.callbacks)

    def _validate(self, run: _Run, validation: AutoregressiveLMDataset, epoch: int) -> bool:
        """Evaluate, log, tell the callbacks; whether to stop."""
        result = evaluate(
            self.model.model,
            validation.tokens,
            batch_size=run.batches.batch_size,
            context_length=validation.max_seq_len,
            autocast=self._autocast(),
        )
        metrics = self.figures.validation_metrics(result)
        loss = metrics["loss"]
        run.log.validation(loss, metrics["accuracy"], epoch)
        return _any(callback.on_validation_end(self.model, epoch, loss, metrics) for callback in self.callbacks)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.use_amp)

    def _batches(self, dataset: AutoregressiveLMDataset | None, batch_size: int) -> Batches:
        dataset = require_dataset(dataset, "dataset", self.model)
        return Batches(
            dataset.tokens,
            batch_size=batch_size,
            context_length=dataset.max_seq_len,
            mode="rows",
            seed=int(torch.randint(2**62, ())),
            padding_as_target=self.figures.as_card,
            end_truncated=self.figures.as_card,  # RxNN's rows end in [EOS] even where the document goes on
        )


def _any(answers: Iterable[object]) -> bool:
    """Whether any is true; unlike `any`, all are heard."""
    return any(list(answers))
