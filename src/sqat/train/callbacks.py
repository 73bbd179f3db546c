"""The standard callbacks: a progress bar, the metrics log, TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqat.durable import flush, replace_file, writing
from sqat.train.evaluate import Evaluation
from sqat.train.state import TrainState
from sqat.train.trainer import Callback, Trainer

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar(Callback):
    """Shows step, loss, tokens per second and remaining time in the terminal; elsewhere a line per log line."""

    progress: Progress

    def on_start(self, trainer: Trainer) -> None:
        import rich.progress as parts
        from rich.console import Console

        self.console = Console(soft_wrap=True)
        self.progress = parts.Progress(
            parts.TextColumn("{task.description}"),
            parts.BarColumn(),
            parts.MofNCompleteColumn(),
            parts.TextColumn("{task.fields[status]}"),
            parts.TimeElapsedColumn(),
            parts.TextColumn("· left"),
            parts.TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal or self.console.is_dumb_terminal,
        )
        # Evaluating or compiling kernels may come first: the bar pulses until a step is done.
        self.task = self.progress.add_task(
            "preparing", start=False, total=trainer.total_steps, completed=trainer.state.step, status=""
        )
        self.progress.start()

    def on_step(self, trainer: Trainer) -> None:
        if not self.progress.tasks[0].started:
            self.progress.start_task(self.task)
        doing = "finishing" if trainer.state.step == trainer.total_steps else "training"
        self.progress.update(self.task, completed=trainer.state.step, description=doing)

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        status = f"loss {metrics['loss']:.3f} · {metrics['tokens_per_second']:,.0f} tokens/s"
        self.progress.update(self.task, status=status)
        if self.progress.disable:
            self.console.print(f"step {trainer.state.step} of {trainer.total_steps} · {status}", highlight=False)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self.console.print(f"step {trainer.state.step}: validation {evaluation.summary()}", highlight=False)

    def on_end(self, trainer: Trainer) -> None:
        if not self.progress.disable:
            self.progress.stop()


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
    except ValueError:
        return False
    evaluated = state.evaluation["step"] if state.evaluation else None  # a stop may come between step and evaluation
    step = record["step"]
    return bool(step < state.step or (step == state.step and (record["kind"] == "train" or step == evaluated)))


class TensorBoard(Callback):
    """Scalars for TensorBoard (`tensorboard --logdir …`), through torch's writer."""

    writer: Any = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = trainer.state.step
        with writing(self.folder):  # what earlier starts wrote of later steps is removed
            self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else 0)

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        self._scalars("train", metrics, trainer.state.step)

    def on_evaluate(self, trainer: Trainer, evaluation: Evaluation) -> None:
        self._scalars("validation", evaluation.to_dict(), trainer.state.step)

    def on_save(self, trainer: Trainer) -> None:
        with writing(self.folder):
            self.writer.flush()

    def on_end(self, trainer: Trainer) -> None:
        if self.writer is not None:
            with writing(self.folder):
                self.writer.close()

    def _scalars(self, prefix: str, values: dict[str, Any], step: int) -> None:
        with writing(self.folder):
            for name, value in values.items():
                if isinstance(value, (int, float)) and name not in ("step", "tokens"):
                    self.writer.add_scalar(f"{prefix}/{name}", value, step)


def tensorboard_available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("tensorboard") is not None
