"""What watches a run: progress, metric logs, token limit. Each is told of steps and evaluations, and may ask the
trainer to stop.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqat.durable import flush, make_folder, replace_file, writing
from sqat.errors import ConfigError, StorageError
from sqat.train.evaluate import Evaluation
from sqat.train.events import EventFile
from sqat.untrusted import parse_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from sqat.train.loop import Trainer
    from sqat.train.state import TrainState

logger = logging.getLogger(__name__)


class Callback:
    """Override what is of interest.

    Of several processes the first alone calls it, so it must not evaluate or save by itself, for which all are needed;
    `trainer.stop` may be called in any.
    """

    everywhere = False  # true: every process calls it

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step; `trainer.state` is where a resumed run goes on."""

    def on_step(self, trainer: Trainer) -> None:
        """After every step. Reading results from the device here would slow the run: see `on_log`."""

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Every `log_every` steps: means over the steps since the last time."""

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """After an evaluation of the validation set."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written: what a resumed run counts on must be on the disk first."""

    def on_end(self, trainer: Trainer) -> None:
        """When the run is over or stopped."""


class ProgressBar(Callback):
    """Step, loss, tokens per second and time left, in the terminal."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def on_start(self, trainer: Trainer) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.task = self.progress.add_task("train", total=trainer.total_steps, completed=trainer.state.step, status="")
        self.progress.start()

    def on_step(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=trainer.state.step)

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        if self.progress is not None:
            status = f"loss {metrics['loss']:.3f} · {metrics['tokens_per_second']:,.0f} tokens/s"
            self.progress.update(self.task, status=status)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        if self.progress is not None:
            self.progress.console.print(
                f"step {trainer.state.step}: validation {evaluation.summary()}", highlight=False
            )

    def on_end(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class JsonlLog(Callback):
    """One JSON object a line; `kind` is "train" or "validation". A resumed run drops the lines past the state it goes
    on from.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_start(self, trainer: Trainer) -> None:
        with writing(self.path):
            make_folder(self.path.parent)
        lines = self.path.read_bytes().decode("utf-8", "replace").splitlines() if self.path.exists() else []
        replace_file(self.path, "".join(line + "\n" for line in lines if _is_before(line, trainer.state)))

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._append({"kind": "train", **metrics})

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self._append(
            {"kind": "validation", "step": trainer.state.step, "tokens": trainer.state.tokens, **evaluation.to_dict()}
        )

    def on_save(self, trainer: Trainer) -> None:
        with writing(self.path):
            if self.path.exists():
                flush(self.path)

    def _append(self, record: dict[str, Any]) -> None:
        # JSON has no numbers that are none.
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _is_before(line: str, state: TrainState) -> bool:
    """Whether a log line tells of what led to a state; one that a crash cut short does not."""
    try:
        record = parse_json(line, finite=False)
        step, kind = record["step"], record["kind"]
    except (ValueError, KeyError, TypeError):
        return False
    if type(step) is not int:
        return False
    evaluated = state.evaluation["step"] if state.evaluation else None  # a stop may come between step and evaluation
    return step < state.step or (step == state.step and (kind == "train" or step == evaluated))


class TensorBoard(Callback):
    """Scalars for TensorBoard (`tensorboard --logdir …`). Where they cannot be written, a warning says so, and the run
    goes on without them.
    """

    def __init__(self, folder: str | Path) -> None:
        if not tensorboard_available():
            raise ConfigError("tensorboard is true, but the package is missing: pip install tensorboard")
        self.folder = Path(folder)
        self.events: EventFile | None = None

    def on_start(self, trainer: Trainer) -> None:
        step = trainer.state.step
        with self._writing():
            self.events = EventFile(self.folder, first_step=step + 1 if step else 0)

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._scalars("train", metrics, trainer.state.step)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self._scalars("validation", evaluation.to_dict(), trainer.state.step)

    def on_save(self, trainer: Trainer) -> None:
        with self._writing():
            if self.events is not None:
                self.events.flush()

    def on_end(self, trainer: Trainer) -> None:
        with self._writing():
            if self.events is not None:
                self.events.close()
        self.events = None

    def _scalars(self, prefix: str, values: dict[str, Any], step: int) -> None:
        chosen = {
            f"{prefix}/{name}": value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in ("step", "tokens")
        }
        with self._writing():
            if self.events is not None:
                self.events.add(chosen, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing(self.folder):
                yield
        except StorageError as error:
            logger.warning("%s. The run goes on without TensorBoard; its log has the same figures", error)
            events, self.events = self.events, None
            if events is not None:
                with suppress(OSError):  # of what it could not write before
                    events.close()


def tensorboard_available() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


class TokenLimit(Callback):
    """Stop after a number of training targets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def on_start(self, trainer: Trainer) -> None:
        self.on_step(trainer)  # a run that was stopped by it stays as it is

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.tokens >= self.limit:
            trainer.stop(f"token limit {self.limit:,} reached")
