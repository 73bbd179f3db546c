"""The standard callbacks: a progress bar, the metrics log, TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqat.durable import flush, replace_file, writing
from sqat.errors import ConfigError, StorageError
from sqat.train.evaluate import Evaluation
from sqat.train.state import TrainState
from sqat.train.trainer import Callback, Trainer

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)


class ProgressBar(Callback):
    """Shows step, loss, tokens per second and remaining time in the terminal; elsewhere a line per log line."""

    progress: Progress | None = None

    def on_start(self, trainer: Trainer) -> None:
        import rich.progress as parts
        from rich.console import Console

        self.console = Console(soft_wrap=True)
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            return
        self.progress = parts.Progress(
            parts.TextColumn("{task.description}"),
            parts.BarColumn(),
            parts.MofNCompleteColumn(),
            parts.TextColumn("{task.fields[status]}"),
            parts.TimeElapsedColumn(),
            parts.TextColumn("· left"),
            parts.TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
        )
        # Evaluating or compiling kernels may come first: the bar pulses until a step is done.
        self.task = self.progress.add_task(
            "preparing", start=False, total=trainer.total_steps, completed=trainer.state.step, status=""
        )
        self.progress.start()

    def on_step(self, trainer: Trainer) -> None:
        if self.progress is not None and not self.progress.tasks[0].started:
            self.progress.start_task(self.task)
        last = trainer.state.step == trainer.total_steps
        self._update(completed=trainer.state.step, description="finishing" if last else "training")

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        status = f"loss {metrics['loss']:.3f} · {metrics['tokens_per_second']:,.0f} tokens/s"
        self._update(status=status)
        if self.progress is None:
            self.console.print(f"step {trainer.state.step} of {trainer.total_steps} · {status}", highlight=False)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.console.print(f"step {trainer.state.step}: validation {evaluation.summary()}", highlight=False)

    def on_end(self, trainer: Trainer) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _update(self, **fields: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.task, **fields)


class JsonlLog(Callback):
    """Writes the metrics file, one JSON object per line; `kind` is "train" or "validation". A resumed run first removes
    the lines after the step that it resumes from.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_start(self, trainer: Trainer) -> None:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
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
        # JSON has neither NaN nor Inf.
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _is_before(line: str, state: TrainState) -> bool:
    """Whether a log line is from before a state; a line that a crash truncated is not."""
    try:
        record = json.loads(line)
        step, kind = record["step"], record["kind"]
    except (ValueError, KeyError, TypeError):
        return False
    if type(step) is not int:
        return False
    evaluated = state.evaluation["step"] if state.evaluation else None  # a stop may come between step and evaluation
    return step < state.step or (step == state.step and (kind == "train" or step == evaluated))


class TensorBoard(Callback):
    """Scalars for TensorBoard (`tensorboard --logdir …`), through torch's writer. If they cannot be written, it
    logs a warning and the run continues without them.
    """

    def __init__(self, folder: str | Path) -> None:
        if not tensorboard_available():
            raise ConfigError("tensorboard is true, but the package is missing: pip install tensorboard")
        self.folder = Path(folder)
        self.writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = trainer.state.step
        purge = step + 1 if step else 0  # removes what earlier starts wrote of later steps
        self._try(lambda: setattr(self, "writer", SummaryWriter(str(self.folder), purge_step=purge)))

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._scalars("train", metrics, trainer.state.step)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self._scalars("validation", evaluation.to_dict(), trainer.state.step)

    def on_save(self, trainer: Trainer) -> None:
        if self.writer is not None:
            self._try(self.writer.flush)

    def on_end(self, trainer: Trainer) -> None:
        if self.writer is not None:
            self._try(self.writer.close)
        self.writer = None

    def _scalars(self, prefix: str, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            if self.writer is not None and isinstance(value, (int, float)) and name not in ("step", "tokens"):
                self._try(self.writer.add_scalar, f"{prefix}/{name}", value, step)

    def _try(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            with writing(self.folder):
                call(*arguments)
        except StorageError as error:
            logger.warning("%s. The run goes on without TensorBoard; its log has the same metrics", error)
            writer, self.writer = self.writer, None
            with suppress(OSError):  # the same error again
                if writer is not None:
                    writer.close()


def tensorboard_available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("tensorboard") is not None
