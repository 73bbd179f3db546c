"""The training loop: steps, evaluations, checkpoints, resuming."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sqat.checkpoint.model_files import WEIGHTS_FILE, load_model, unwrapped, write_model
from sqat.config import MAX_INTEGER
from sqat.data.batches import Batch, Batches, BatchState
from sqat.data.tokenizer import Tokenizer
from sqat.data.tokens import TokenFile
from sqat.errors import CheckpointError, ConfigError, StorageError, TrainingError
from sqat.model import Decoder
from sqat.run_config import TrainConfig
from sqat.train import checkpoints, distributed, step
from sqat.train.distributed import first_does, is_first
from sqat.train.evaluate import Evaluation, evaluate
from sqat.train.metrics import MetricsWindow
from sqat.train.optim import learning_rate, make_optimizer
from sqat.train.signals import StopOnSignals
from sqat.train.state import TrainState, restore, state_tensors, write_evaluation

logger = logging.getLogger(__name__)


class Callback:
    """Observes a run; override the methods you need.

    With several ranks only the first calls it, so it must not evaluate or save by itself, for which all are needed.
    `trainer.stop` may be called on any rank.
    """

    everywhere = False  # true: every rank calls it

    def on_start(self, trainer: Trainer) -> None:
        """Called before the first step; `trainer.state` is where a resumed run goes on."""

    def on_step(self, trainer: Trainer) -> None:
        """Called after every step. Reading results from the device here would slow the run: see `on_log`."""

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Called every `log_every` steps, with means over the steps since the last time."""

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Called after an evaluation on the validation set."""

    def on_save(self, trainer: Trainer) -> None:
        """Called before a checkpoint is written: what a resumed run relies on must be on the disk first."""

    def on_end(self, trainer: Trainer) -> None:
        """Called when the run is over or stopped, or has failed."""


class StepData(NamedTuple):
    """What one step trains on."""

    micro_batches: list[Batch]  # this rank's rows of them
    targets: int  # in the micro-batches of all ranks
    after: BatchState  # where the next step's data begin


def feed(batches: Batches, data: BatchState, accumulation: int, device: torch.device) -> Iterator[StepData]:
    """The data of step after step, without end, `accumulation` micro-batches each; an epoch's last step may have
    fewer.
    """
    while True:
        rows = batches.epoch(data)
        while group := list(islice(rows, accumulation)):
            data = group[-1][1]
            targets = sum(batch.num_targets for batch, _ in group)
            yield StepData([distributed.own_rows(batch).to(device) for batch, _ in group], targets, data)


class Trainer:
    """Trains a decoder on batches, in one process or on several ranks.

    A subclass that trains another kind of model overrides `make_task`, `measure`, `write_model` and `load_weights`.

    Args:
        model: the decoder; it is moved to the device and trained in place. Of one from `torch.compile` the model within
            is trained; set `TrainConfig.compile` to compile the step. All ranks must have the same weights, and
            torch's random generator in the same state.
        batches: training rows; their position is part of the run's state.
        config: see :class:`sqat.TrainConfig`.
        validation: documents to evaluate on; None for no evaluation.
        out: the run's folder, for checkpoints; None to write nothing.
        tokenizer: saved with every checkpoint.
        callbacks: notified of every step, see :class:`Callback`.

    Raises:
        ConfigError: the device is not available, settings do not go with several ranks, or another process trains in
            `out`.
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
        self.model = model = unwrapped(model)
        self.batches = batches
        self.config = config
        self.validation = validation
        self.out = None if out is None else Path(out).expanduser()
        self.tokenizer = tokenizer
        self.state = TrainState()
        self.window = MetricsWindow()
        self.stop_reason: str | None = None
        self.interrupted = False
        self.signals = StopOnSignals(self.interrupt)
        self._asked: tuple[bool, str | None] = False, None  # of this rank: whether to leave at once, and why to stop
        self._unread: list[tuple[int, BatchState, step.Sums]] = []  # steps, and where they began, until they are read
        self._too_many: str | None = None  # why the run ends, once too many steps in a row were skipped
        self._held = ExitStack()  # the run folder's lock
        self._held.enter_context(checkpoints.run_folder(self.out))

        distributed.join(config.device)
        check_settings(model, config)
        self.device = distributed.choose_device(config.device)
        if self.device.type == "cpu":
            step.keep_freed_memory()
        model.gradient_checkpointing = config.gradient_checkpointing
        model.to(self.device)
        self.sharded = distributed.world_size() > 1 and config.parallel == "fsdp"
        if self.sharded:
            distributed.shard_model(model)
        self.task: nn.Module = self.make_task()
        self.optimizer = make_optimizer(model, config)
        if distributed.world_size() > 1 and not self.sharded:
            devices = [self.device] if self.device.type == "cuda" else None
            self.task = DistributedDataParallel(self.task, device_ids=devices, gradient_as_bucket_view=True)

        self.callbacks = [callback for callback in callbacks if is_first() or callback.everywhere]
        per_epoch = math.ceil(len(batches) / config.gradient_accumulation)
        self.total_steps = min(config.max_steps or per_epoch * (config.epochs or 1), MAX_INTEGER)
        if is_first():
            warn_of_schedule(config, self.total_steps, batches.targets_per_epoch / per_epoch)

    # What a subclass may override

    def make_task(self) -> step.TrainingLoss:
        """Model and loss as one module, which steps run. The model is on its device already."""
        config = self.config
        shards = 1 if self.sharded else step.suitable_shards(self.model)
        return step.TrainingLoss(
            self.model, config.router_loss, config.router_loss_weight, shards=shards, compiled=config.compile
        )

    def measure(self, validation: TokenFile) -> Evaluation:
        """The metrics of the current model on the validation set."""
        return evaluate(
            self.model,
            validation,
            batch_size=self.config.batch_size,
            padded_metrics=self.batches.padding_as_target,
            autocast=step.autocast(self.config.precision, self.device.type),
        )

    def write_model(self, model: Any, folder: Path) -> None:
        """Write the files of the whole model into an existing folder; called on the first rank."""
        write_model(model, folder)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint into the model.

        Raises:
            CheckpointError: it is damaged, or of another model.
        """
        saved = load_model(checkpoint, dtype=None)
        if saved.config != self.model.config:
            raise CheckpointError(f"{checkpoint / WEIGHTS_FILE} is of another model than this run's: {saved.config}")
        distributed.load_whole(self.model, saved.state_dict())

    # The loop

    @distributed.naming_lost_ranks()
    def train(self) -> Evaluation | None:
        """Train until the end, a stop request or a signal, and save a checkpoint. After a stop, call it again to go on.

        Returns:
            the last evaluation, if there was one.

        Raises:
            StorageError: a checkpoint or log cannot be written; earlier checkpoints are whole.
            TrainingError: training cannot continue usefully, or another rank has ended.
        """
        if self.stop_reason is not None:  # of the last call
            self._asked, self._too_many, self.signals.received = (False, None), None, None
        with self._until_the_end():
            evaluation = None
            self._rehearse()
            if self.state.owes_evaluation(self.config, self.total_steps):
                evaluation = self.evaluate()
            self._stop_at_token_limit()
            self._agree()
            self.window.restart_clock()
            steps = feed(self.batches, self.state.data, self.config.gradient_accumulation, self.device)
            for data in islice(steps, 0 if self.stop_reason else self.total_steps - self.state.step):
                self.window.waited()
                self.window.add(self._step(data))
                evaluation = self._after_step()
                if self.stop_reason:
                    break
            return self._finish(evaluation)

    def stop(self, reason: str) -> None:
        """Ask the run to stop after the current step; it saves a checkpoint and evaluates first. All ranks stop if one
        is asked to.
        """
        self._asked = self._asked[0], self._asked[1] or reason

    def interrupt(self, reason: str) -> None:
        """Ask the run to stop after the current step without evaluating; it saves a checkpoint to resume from."""
        self._asked = True, self._asked[1] or reason

    @contextmanager
    def _until_the_end(self) -> Iterator[None]:
        """Lock the folder, start the callbacks, listen to signals; and end all of that, whatever fails."""
        with checkpoints.run_folder(self.out), ExitStack() as ends:  # locked again, for a second call
            ends.callback(self._held.close)
            for callback in self.callbacks:
                ends.callback(callback.on_end, self)
            for callback in self.callbacks:
                callback.on_start(self)
            with self.signals:
                yield

    def _step(self, data: StepData) -> step.Sums:
        config, state = self.config, self.state
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step, self.total_steps)
        with (
            step.explain_out_of_memory(f"step {state.step + 1}", config.batch_size, training=True),
            step.autocast(config.precision, self.device.type),
        ):
            sums = step.train_step(
                self.task,
                data.micro_batches,
                self.optimizer,
                total_targets=torch.full((), max(data.targets, 1), device=self.device),
                clip_norm=config.clip_norm,
                accumulating=self._accumulating,
            )
        state.step += 1
        before, state.data = state.data, data.after
        state.tokens += data.targets
        self._unread.append((state.step, before, sums))
        if not step.waits(sums["skipped"]):
            self._count_skipped()
        return sums

    def _after_step(self) -> Evaluation | None:
        config, done = self.config, self.state.step
        for callback in self.callbacks:
            callback.on_step(self)
        self._stop_at_token_limit()
        last = done == self.total_steps
        if done % config.log_every == 0 or last:
            self._count_skipped()
            counts = {"step": done, "tokens": self.state.tokens, "learning_rate": self.optimizer.param_groups[0]["lr"]}
            metrics = {**counts, "skipped_steps": self.state.skipped_steps, **self.window.read()}
            for callback in self.callbacks:
                callback.on_log(self, metrics)
        self._agree()
        if last or self.stop_reason:  # the end has its own checkpoint and evaluation
            return None
        best_before = self.state.best_loss
        # The checkpoint comes first: an evaluation may fail, or be killed.
        saved = self.save() if config.checkpoint_every and done % config.checkpoint_every == 0 else None
        evaluation = self.evaluate() if config.evaluate_every and done % config.evaluate_every == 0 else None
        if not saved and self.state.best_loss != best_before:
            saved = self.save()
        if saved or evaluation:
            self._agree()  # a stop may have been asked for meanwhile
        self.window.restart_clock()
        return evaluation

    def _finish(self, evaluation: Evaluation | None) -> Evaluation | None:
        self._count_skipped()
        state, last = self.state, self.state.step == self.total_steps
        if self.stop_reason and is_first():
            logger.warning("stopping at step %d of %d: %s", state.step, self.total_steps, self.stop_reason)
        owed = self.validation is not None and state.own_evaluation is None
        state.finished = last and not owed
        saved = self.save()
        if self._too_many:
            kept = "" if saved is None else f"{saved} is saved, and --resume goes on from it with the next batch. "
            advice = "A lower train.learning_rate, some train.warmup_steps or a higher train.max_skipped_steps"
            advice += f" ({self.config.max_skipped_steps}) may help"
            raise TrainingError(f"{self._too_many}: the run ends. {kept}{advice}")
        if owed and not self.interrupted:
            state.finished = last
            evaluation = self.evaluate()
        return evaluation

    def _agree(self) -> None:
        """Make a request to stop that any rank has everyone's, at the same step."""
        self.interrupted, self.stop_reason = distributed.agree_to_stop(*self._asked)

    def _stop_at_token_limit(self) -> None:
        limit = self.config.max_tokens
        if limit and self.state.tokens >= limit:
            self.stop(f"token limit {limit:,} reached")

    # Evaluating, saving, resuming

    def evaluate(self) -> Evaluation | None:
        """Evaluate now and notify the callbacks. The result is added to this step's checkpoint, if there is one.
        Returns None without validation documents.
        """
        if self.validation is None:
            return None
        with step.explain_out_of_memory("validation", self.config.batch_size, training=True):
            result = self.measure(self.validation)
        self.state.record({**result.to_dict(), "data": self.validation.digest})
        for callback in self.callbacks:
            callback.on_evaluate(self, result)
        if self.out is not None:
            first_does(partial(self._add_evaluation, self.out))
        return result

    def save(self) -> Path | None:
        """Write the checkpoint of this step unless it exists; returns its folder, or None without a run folder.

        Raises:
            StorageError: it cannot be written; earlier checkpoints are intact.
            TrainingError: some weights are NaN or Inf.
        """
        self._count_skipped()
        if self.out is None:
            return None
        folder = checkpoints.checkpoint_path(self.out, self.state.step)
        if not first_does(folder.exists):
            model = distributed.whole_model(self.model)
            tensors = state_tensors(self.model, self.optimizer)
            first_does(partial(self._write, self.out, model, tensors))
        return folder

    def resume(self) -> bool:
        """Load the newest intact checkpoint, so that training continues bit for bit as if the run had not stopped.
        Returns false if there is no checkpoint.

        Raises:
            CheckpointError: all checkpoints are damaged, or the newest is of another model.
        """
        checkpoint = None if self.out is None else first_does(partial(checkpoints.newest_whole_checkpoint, self.out))
        if checkpoint is None:
            return False
        self.load_weights(checkpoint)
        self.state, self.window = restore(checkpoint, self.model, self.optimizer), MetricsWindow()
        logger.info("resumed %s at step %d", checkpoint, self.state.step)
        return True

    def _write(self, out: Path, model: Any, tensors: dict[str, Any]) -> None:
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise TrainingError(
                f"the weights are not finite after step {self.state.step}; earlier checkpoints are kept"
            )
        with self._writing():
            checkpoints.write_checkpoint(out, partial(self.write_model, model), self.state, tensors, self.tokenizer)
            checkpoints.rotate(out, self.config.keep_checkpoints)

    def _add_evaluation(self, out: Path) -> None:
        folder = checkpoints.checkpoint_path(out, self.state.step)
        if folder.exists():
            with self._writing():
                write_evaluation(folder, self.state)
                checkpoints.rotate(out, self.config.keep_checkpoints)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        for callback in self.callbacks:
            callback.on_save(self)
        try:
            yield
        except StorageError as error:
            raise StorageError(
                f"{error}. Earlier checkpoints, if there are any, are whole; --resume goes on from the newest"
            ) from error

    # Skipped steps

    def _count_skipped(self) -> None:
        """Read which steps were skipped, for which a GPU is waited for; interrupt the run after too many in a row."""
        steps, self._unread = self._unread, []
        for number, before, sums in steps:
            if not sums["skipped"]:
                self.state.skipped_in_a_row = 0
                continue
            self.state.skipped_steps += 1
            self.state.skipped_in_a_row += 1
            found = f"loss {sums['loss'] / sums['targets']:.4g}, gradient norm {sums['grad_norm']:.4g}"
            found += f"; its data begin at epoch {before.epoch}, row {before.row}"
            logger.warning("step %d is skipped: %s", number, found)
            if self.state.skipped_in_a_row >= self.config.max_skipped_steps and self._too_many is None:
                self._too_many = (
                    f"{self.state.skipped_in_a_row} steps in a row, up to step {number}, were skipped ({found})"
                )
                self.interrupt("too many skipped steps in a row")

    # Several ranks

    def _rehearse(self) -> None:
        """Run forward and backward over a row that counts for nothing, before the first step.

        DDP lays out its buckets by the order in which gradients first arrive, and sums of more than two numbers depend
        on the layout. This makes it the same in a resumed run as in one that was not stopped.
        """
        if not isinstance(self.task, DistributedDataParallel):
            return
        self.model.train()
        row = distributed.without_targets(self.batches.batch(0, 0)).to(self.device)
        precision = step.autocast(self.config.precision, self.device.type)
        with torch.random.fork_rng(devices=[]), precision, distributed.own_draws():
            loss, _ = self.task(row, 1, 0.0)
            loss.backward()
        self.optimizer.zero_grad()

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        """Leave gradients of micro-batches before a step's last one on their rank."""
        model: Any = self.model
        with self.task.no_sync() if isinstance(self.task, DistributedDataParallel) else nullcontext():
            if self.sharded:
                model.set_requires_gradient_sync(False)
            yield
            if self.sharded:
                model.set_requires_gradient_sync(True)


def warn_of_schedule(config: TrainConfig, total_steps: int, tokens_per_step: float) -> None:
    """Warn of a learning rate that never reaches its peak, or never falls from it."""
    most_tokens = math.inf if config.max_tokens is None else config.max_tokens
    last = total_steps if most_tokens == math.inf else min(total_steps, math.ceil(most_tokens / tokens_per_step))
    high = 0.5 * config.learning_rate
    if 0 < last < config.warmup_steps:
        text = "warmup_steps is %d, but the run has %d steps: the learning rate never reaches its peak"
        logger.warning(text, config.warmup_steps, last)
    elif last < total_steps and learning_rate(config, last, total_steps) > high >= config.min_learning_rate:
        logger.warning(
            "max_tokens %d ends the run at about step %d of a schedule of %d, where the learning rate is still high: "
            "set max_steps to %d instead",
            *(config.max_tokens, last, total_steps, last),
        )


def check_settings(model: nn.Module, config: TrainConfig) -> None:
    """Raise a ConfigError for settings that do not go with several ranks."""
    ranks = distributed.world_size()
    if ranks == 1:
        return
    if config.batch_size < ranks:
        raise ConfigError(
            f"batch_size is {config.batch_size}, but must be at least {ranks}, the number of processes, each of "
            "which takes a share of its rows"
        )
    if config.parallel == "fsdp":
        if config.compile:
            raise ConfigError('compile is true, but must be false where parallel is "fsdp"')
        if not isinstance(model, Decoder):
            raise ConfigError('parallel is "fsdp", but must be "ddp" for models other than this package\'s own')
