"""The training loop: steps, evaluation, checkpoints, and going on from where a run was stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sqat.checkpoint.model_files import WEIGHTS_FILE, load_model, write_model
from sqat.data.batches import Batch, Batches, BatchState
from sqat.data.tokenizer import Tokenizer
from sqat.data.tokens import TokenFile
from sqat.errors import CheckpointError, StorageError, TrainingError
from sqat.model import Decoder
from sqat.run_config import TrainConfig
from sqat.train.allocator import keep_freed_memory
from sqat.train.callbacks import Callback, TokenLimit
from sqat.train.checkpoints import latest_checkpoint, save_checkpoint
from sqat.train.claim import claim
from sqat.train.device import make_accelerator, use_bf16
from sqat.train.evaluate import Evaluation, evaluate
from sqat.train.optim import cosine_with_warmup, make_optimizer, set_learning_rate
from sqat.train.shards import suitable_shards
from sqat.train.signals import StopOnSignals
from sqat.train.state import TrainState, restore
from sqat.train.step import StepSums, TrainingLoss, train_step
from sqat.train.window import MetricsWindow

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a decoder on batches.

    A subclass that trains another kind of model overrides `make_task`, `measure`, `write_model` and `load_weights`.

    Args:
        model: the decoder; it is trained in place.
        batches: training rows; their state is part of the run's.
        config: see :class:`TrainConfig`.
        validation: documents to evaluate on; without them nothing is evaluated.
        out: the run's folder, for checkpoints; without it nothing is written.
        tokenizer: saved with every checkpoint.
        callbacks: told of every step; see :class:`Callback`.

    Raises:
        ConfigError: a device that is not there, or a run of another process in `out`.
    """

    def __init__(
        self,
        model: Decoder,
        batches: Batches,
        config: TrainConfig,
        *,
        validation: TokenFile | None = None,
        out: str | Path | None = None,
        tokenizer: Tokenizer | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        self.model = model
        self.batches = batches
        self.config = config
        self.validation = validation
        self.out = None if out is None else Path(out)
        self.lock = claim(self.out)
        self.tokenizer = tokenizer
        self.callbacks = [*callbacks, *([TokenLimit(config.max_tokens)] if config.max_tokens else [])]
        self.state = TrainState()
        self.stop_reason: str | None = None
        self.interrupted = False
        self.signals = StopOnSignals(self.interrupt)
        self.window = MetricsWindow()
        self.accelerator = make_accelerator(config.device)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        model.gradient_checkpointing = config.gradient_checkpointing
        model.to(self.accelerator.device)
        self.task, self.optimizer = self.accelerator.prepare(self.make_task(), make_optimizer(model, config))
        if config.compile:
            self.task = torch.compile(
                self.task, dynamic=False
            )  # a shape is a graph: an epoch has two, with its last batch
        per_epoch = math.ceil(len(batches) / config.gradient_accumulation)
        self.total_steps = config.max_steps or per_epoch * (config.epochs or 1)

    def make_task(self) -> nn.Module:
        """Model and loss as the one module that steps run; the model is on its device."""
        config = self.config
        shards = 1 if config.compile else suitable_shards(self.model)
        return TrainingLoss(self.model, config.router_loss, config.router_loss_weight, shards=shards)

    def measure(self, validation: TokenFile) -> Evaluation:
        """The figures of the model as it is."""
        return evaluate(self.model, validation, batch_size=self.config.batch_size, autocast=self._autocast())

    def write_model(self, folder: Path) -> None:
        """Write the model's files into an existing folder."""
        write_model(self.model, folder)

    def load_weights(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            CheckpointError: damaged, or of another model.
        """
        saved = load_model(checkpoint, dtype=None)
        if saved.config != self.model.config:
            raise CheckpointError(f"{checkpoint / WEIGHTS_FILE} is of another model than this run's: {saved.config}")
        self.model.load_state_dict(saved.state_dict())

    def train(self) -> Evaluation | None:
        """Run to the end, a stop request or a signal; a checkpoint is left either way. Returns the last evaluation, if
        there was one.

        Raises:
            StorageError: a checkpoint or log cannot be written; earlier checkpoints are whole.
            TrainingError: the numbers are none any more.
        """
        evaluation = None
        self.lock = self.lock or claim(self.out)
        for callback in self.callbacks:
            callback.on_start(self)
        try:
            with self.signals:
                if self._owed():
                    evaluation = self.evaluate()
                    if self.state.step:  # of the checkpoint that was resumed, which lacks it
                        self.save()
                self.window.restart()
                left = 0 if self.stop_reason else self.total_steps - self.state.step
                for step_batches, after in islice(self._steps(), left):
                    self.window.waited()
                    self.window.add(self._step(step_batches, after))
                    evaluation = self._after_step(self.window)
                    if self.stop_reason:
                        break
            evaluation = self._finish(evaluation)
        finally:
            for callback in self.callbacks:
                callback.on_end(self)
            self.lock = None
        return evaluation

    def stop(self, reason: str) -> None:
        """Ask the run to stop after the current step; it evaluates and saves a checkpoint first."""
        self.stop_reason = self.stop_reason or reason

    def interrupt(self, reason: str) -> None:
        """Ask the run to stop after the current step without evaluating; it saves a checkpoint, from which it can be
        resumed.
        """
        self.interrupted = True
        self.stop(reason)

    def evaluate(self) -> Evaluation | None:
        """Evaluate now, tell the callbacks, and remember the result; `None` without validation documents."""
        if self.validation is None:
            return None
        result = self.measure(self.validation)
        self.state.evaluation = {"step": self.state.step, **result.to_dict()}
        best = self.state.best_loss
        self.state.best_loss = result.loss if best is None else min(result.loss, best)
        for callback in self.callbacks:
            callback.on_evaluate(self, result)
        return result

    def save(self) -> Path | None:
        """Write a checkpoint of this very step; `None` without a run folder.

        Raises:
            StorageError: it cannot be written; earlier checkpoints are whole.
            TrainingError: weights that are no longer numbers, which are not worth keeping.
        """
        if self.out is None:
            return None
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise TrainingError(
                f"the weights are not finite after step {self.state.step}; earlier checkpoints are kept"
            )
        for callback in self.callbacks:
            callback.on_save(self)
        keep, unlogged = self.config.keep_checkpoints, self.unlogged()
        try:
            return save_checkpoint(
                self.out, self.write_model, self.state, self.optimizer, self.tokenizer, keep=keep, unlogged=unlogged
            )
        except StorageError as error:
            raise StorageError(f"{error}. Earlier checkpoints are whole; --resume goes on from the newest") from error

    def resume(self) -> bool:
        """Go on from the run's newest checkpoint, to the same bits as if it had not stopped; false if there is none.

        Raises:
            CheckpointError: the checkpoint is damaged or of another model.
        """
        checkpoint = None if self.out is None else latest_checkpoint(self.out)
        if checkpoint is None:
            return False
        self.load_weights(checkpoint)
        self.state, unlogged = restore(checkpoint, self.optimizer)
        self.restore_unlogged(unlogged)
        logger.info("resumed %s at step %d", checkpoint, self.state.step)
        return True

    def unlogged(self) -> dict[str, torch.Tensor]:
        """What was measured since the last log line: a checkpoint keeps it, so that no line differs after a stop."""
        return self.window.tensors()

    def restore_unlogged(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on after what `unlogged` gave."""
        self.window.restore(tensors, self.accelerator.device)

    def _steps(self) -> Iterator[tuple[list[Batch], BatchState]]:
        """The micro-batches of each step, without end, and the data state after it. The last step of an epoch may have
        fewer.
        """
        data = self.state.data
        while True:
            rows = self.batches.epoch(data)
            while group := list(islice(rows, self.config.gradient_accumulation)):
                data = group[-1][1]
                yield [batch.to(self.accelerator.device) for batch, _ in group], data

    def _step(self, micro_batches: list[Batch], after: BatchState) -> StepSums:
        self.model.train()
        config = self.config
        rate = cosine_with_warmup(
            self.state.step,
            peak=config.learning_rate,
            total_steps=self.total_steps,
            warmup_steps=config.warmup_steps,
            floor=config.min_learning_rate,
        )
        set_learning_rate(self.optimizer.param_groups, rate)
        targets = sum(batch.num_targets for batch in micro_batches)
        with self._autocast():
            sums = train_step(
                self.task,
                micro_batches,
                self.optimizer,
                total_targets=torch.full((), max(targets, 1), device=self.accelerator.device),
                backward=self.accelerator.backward,
                clip=self._clip,
            )
        self.state.step += 1
        self.state.tokens += targets
        self.state.data = after
        return sums

    def _after_step(self, window: MetricsWindow) -> Evaluation | None:
        config, step = self.config, self.state.step
        for callback in self.callbacks:
            callback.on_step(self)
        last = step == self.total_steps
        if step % config.log_every == 0 or last:
            metrics = {
                "step": step,
                "tokens": self.state.tokens,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                **window.read(),
            }
            if not math.isfinite(metrics["loss"]):
                raise TrainingError(
                    f"the loss is {metrics['loss']} at step {step}; earlier checkpoints are kept. "
                    "A lower learning_rate or some warmup_steps may help"
                )
            for callback in self.callbacks:
                callback.on_log(self, metrics)
        if last or self.stop_reason:  # the end has its own evaluation and checkpoint
            return None
        evaluation, best_before = None, self.state.best_loss
        if config.evaluate_every and step % config.evaluate_every == 0:
            evaluation = self.evaluate()
        if self.state.best_loss != best_before or (config.checkpoint_every and step % config.checkpoint_every == 0):
            self.save()
        window.restart()
        return evaluation

    @property
    def _evaluated(self) -> bool:
        """Whether the validation loss of this very step is known."""
        return self.state.evaluation is not None and self.state.evaluation["step"] == self.state.step

    def _owed(self) -> bool:
        """Whether an evaluation comes before the next step: the first one, or one that a signal's stop left out."""
        step, every = self.state.step, self.config.evaluate_every
        due = step % every == 0 if step and every else step == 0 and self.config.evaluate_first
        return due and step < self.total_steps and not self._evaluated

    def _finish(self, evaluation: Evaluation | None) -> Evaluation | None:
        if self.stop_reason:
            logger.warning("stopping at step %d of %d: %s", self.state.step, self.total_steps, self.stop_reason)
        if not self.interrupted and not self.state.finished:
            evaluation = evaluation if self._evaluated else self.evaluate()
            self.state.finished = self.state.step == self.total_steps
        self.save()
        return evaluation

    def _clip(self) -> torch.Tensor:
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        return self.accelerator.clip_grad_norm_(self.model.parameters(), limit)

    def _autocast(self) -> AbstractContextManager[Any]:
        device = self.accelerator.device.type
        if use_bf16(self.config.precision, device):
            return torch.autocast(device, dtype=torch.bfloat16)
        return nullcontext()
