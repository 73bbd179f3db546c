"""The training loop: steps, evaluation, checkpoints, and going on from where a run was stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sqat.checkpoint.model_files import WEIGHTS_FILE, load_model, write_model
from sqat.config import MAX_INTEGER
from sqat.cpu.shards import suitable_shards
from sqat.data.batches import Batches
from sqat.data.tokenizer import Tokenizer
from sqat.data.tokens import TokenFile
from sqat.errors import CheckpointError
from sqat.model import Decoder
from sqat.run_config import TrainConfig
from sqat.train import persist
from sqat.train.callbacks import Callback, TokenLimit
from sqat.train.claim import claim
from sqat.train.distributed import agree_to_stop, is_first, naming_loss
from sqat.train.engine import Engine
from sqat.train.evaluate import Evaluation, evaluate
from sqat.train.feed import StepData, feed
from sqat.train.finite import SkippedSteps
from sqat.train.memory import explain_out_of_memory
from sqat.train.optim import learning_rate
from sqat.train.parallel import load_whole
from sqat.train.signals import StopOnSignals
from sqat.train.state import TrainState
from sqat.train.step import StepSums, TrainingLoss
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
        self.state = TrainState()
        self.skipped = SkippedSteps(self)
        self.stop_reason: str | None = None
        self.interrupted = False
        self.signals = StopOnSignals(self.interrupt)
        self.window = MetricsWindow()
        self._asked: tuple[bool, str | None] = False, None  # of this process: whether to leave at once, and why to stop
        self.engine = Engine(model, config)
        self.accelerator = self.engine.accelerator
        self.engine.prepare(self.make_task())
        self.optimizer = self.engine.optimizer
        told = [*callbacks, *([TokenLimit(config.max_tokens)] if config.max_tokens else [])]
        self.callbacks = [callback for callback in told if is_first() or callback.everywhere]
        per_epoch = math.ceil(len(batches) / config.gradient_accumulation)
        self.total_steps = min(config.max_steps or per_epoch * (config.epochs or 1), MAX_INTEGER)

    def make_task(self) -> nn.Module:
        """Model and loss as the one module that steps run; the model is on its device."""
        config = self.config
        shards = 1 if config.compile or self.engine.cut else suitable_shards(self.model)
        return TrainingLoss(self.model, config.router_loss, config.router_loss_weight, shards=shards)

    def measure(self, validation: TokenFile) -> Evaluation:
        """The figures of the model as it is."""
        return evaluate(self.model, validation, batch_size=self.config.batch_size, autocast=self.engine.autocast())

    def write_model(self, model: Any, folder: Path) -> None:
        """Write the files of the model, whole, into an existing folder; of several processes the first is asked."""
        write_model(model, folder)

    def load_weights(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            CheckpointError: damaged, or of another model.
        """
        saved = load_model(checkpoint, dtype=None)
        if saved.config != self.model.config:
            raise CheckpointError(f"{checkpoint / WEIGHTS_FILE} is of another model than this run's: {saved.config}")
        load_whole(self.model, saved.state_dict())

    @naming_loss()
    def train(self) -> Evaluation | None:
        """Run to the end, a stop request or a signal; a checkpoint is left either way. A signal that comes after the
        last step changes nothing. Returns the last evaluation, if there was one.

        Raises:
            StorageError: a checkpoint or log cannot be written; earlier checkpoints are whole.
            TrainingError: training cannot usefully go on, or another process of the run is gone.
        """
        evaluation = None
        self.lock = self.lock or claim(self.out)
        for callback in self.callbacks:
            callback.on_start(self)
        try:
            with self.signals:
                self.engine.rehearse(self.batches)
                if self.state.owes_evaluation(self.config, self.total_steps):
                    evaluation = self.evaluate()
                    if self.state.step:  # of the checkpoint that was resumed, which lacks it
                        self.save()
                self._agree()
                self.window.restart()
                steps = feed(self.batches, self.state.data, self.config.gradient_accumulation, self.accelerator.device)
                for data in islice(steps, 0 if self.stop_reason else self.total_steps - self.state.step):
                    self.window.waited()
                    self.window.add(self._step(data))
                    evaluation = self._after_step()
                    if self.stop_reason:
                        break
                evaluation = self._finish(evaluation)
        finally:
            with ExitStack() as ends:  # one that fails leaves none of the others out
                ends.callback(setattr, self, "lock", None)
                for callback in reversed(self.callbacks):
                    ends.callback(callback.on_end, self)
        return evaluation

    def stop(self, reason: str) -> None:
        """Ask the run to stop after the current step; it evaluates and saves a checkpoint first. In several processes
        all stop where one is asked.
        """
        self._asked = self._asked[0], self._asked[1] or reason

    def interrupt(self, reason: str) -> None:
        """Ask the run to stop after the current step without evaluating; it saves a checkpoint, from which it can be
        resumed.
        """
        self._asked = True, self._asked[1] or reason

    def evaluate(self) -> Evaluation | None:
        """Evaluate now, tell the callbacks, and remember the result; `None` without validation documents."""
        if self.validation is None:
            return None
        with explain_out_of_memory("validation", self.config.batch_size, self.config.gradient_accumulation):
            result = self.measure(self.validation)
        self.state.record(result.to_dict())
        for callback in self.callbacks:
            callback.on_evaluate(self, result)
        return result

    def save(self) -> Path | None:
        """Write a checkpoint of this very step; `None` without a run folder.

        Raises:
            StorageError: it cannot be written; earlier checkpoints are whole.
            TrainingError: weights that are no longer numbers.
        """
        return persist.save(self)

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, to the same bits as if the run had not stopped; false without any.

        Raises:
            CheckpointError: all checkpoints are damaged, or the newest is of another model.
        """
        return persist.resume(self)

    def unlogged(self) -> dict[str, Tensor]:
        """What was measured since the last log line: a checkpoint keeps it, so that no line differs after a stop."""
        return self.window.tensors()

    def restore_unlogged(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on after what `unlogged` gave."""
        self.window.restore(tensors, self.accelerator.device)

    def _step(self, data: StepData) -> StepSums:
        config, number = self.config, self.state.step + 1
        with explain_out_of_memory(f"step {number}", config.batch_size, config.gradient_accumulation):
            sums = self.engine.step(data, learning_rate(config, self.state.step, self.total_steps))
        self.state.step += 1
        before, self.state.data = self.state.data, data.after
        self.state.tokens += data.targets
        self.skipped.add(before, sums)
        return sums

    def _after_step(self) -> Evaluation | None:
        config, step = self.config, self.state.step
        for callback in self.callbacks:
            callback.on_step(self)
        last = step == self.total_steps
        if step % config.log_every == 0 or last:
            self.skipped.settle()
            metrics = self.state.progress(self.optimizer.param_groups[0]["lr"]) | self.window.read()
            for callback in self.callbacks:
                callback.on_log(self, metrics)
        self._agree()
        if last or self.stop_reason:  # the end has its own evaluation and checkpoint
            return None
        best_before = self.state.best_loss
        # The checkpoint comes first, since an evaluation may fail, or be killed; then again, with its figures.
        saved = self.save() if config.checkpoint_every and step % config.checkpoint_every == 0 else None
        evaluation = self.evaluate() if config.evaluate_every and step % config.evaluate_every == 0 else None
        if evaluation and (saved or self.state.best_loss != best_before):
            self.save()
        if evaluation or saved:  # meanwhile more may have been asked
            self._agree()
        self.window.restart()
        return evaluation

    def _agree(self) -> None:
        """Make a request to stop that any process has everyone's, at the same step."""
        self.interrupted, self.stop_reason = agree_to_stop(*self._asked)

    def _finish(self, evaluation: Evaluation | None) -> Evaluation | None:
        self.skipped.finish()
        if self.stop_reason and is_first():
            logger.warning("stopping at step %d of %d: %s", self.state.step, self.total_steps, self.stop_reason)
        if not self.interrupted and not self.state.finished:
            if self.validation is not None and self.state.own_evaluation is None:
                self.save()  # first, as after any step
                evaluation = self.evaluate()
            self.state.finished = self.state.step == self.total_steps
        self.save()
        return evaluation
