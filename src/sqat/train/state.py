"""What a training run must remember to go on to the same bits, on disk beside the model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqat.checksums import check_files
from sqat.data.batches import BatchState
from sqat.errors import CheckpointError
from sqat.run_config import TrainConfig
from sqat.train.distributed import is_first
from sqat.train.parallel import cut_as, whole
from sqat.untrusted import read_json, shown

STATE_FILE = "training.json"
TENSORS_FILE = "training.safetensors"
MAX_STATE_BYTES = 1 << 24
_OPTIMIZER = re.compile(r"optimizer\.([0-9]{1,9})\.(step|exp_avg|exp_avg_sq)")
UNLOGGED = "unlogged."  # prefix of what was measured since the last log line


@dataclass
class TrainState:
    """Progress of a run."""

    step: int = 0  # steps done
    tokens: int = 0  # training targets seen
    data: BatchState = field(default_factory=lambda: BatchState(0, 0))  # where the next batch starts
    best_loss: float | None = None  # lowest validation loss so far
    evaluation: dict[str, Any] | None = None  # the latest one
    finished: bool = False
    skipped_steps: int = 0  # of all steps, those whose loss or gradient was no number
    skipped_in_a_row: int = 0  # up to now

    @property
    def own_evaluation(self) -> dict[str, Any] | None:
        """The evaluation of the weights of this very step; an earlier step's is not theirs."""
        return self.evaluation if self.evaluation and self.evaluation.get("step") == self.step else None

    def owes_evaluation(self, config: TrainConfig, total_steps: int) -> bool:
        """Whether an evaluation comes before the next step: the first one, or one that was due and did not come, since
        the run was stopped.
        """
        every = config.evaluate_every
        due = self.step % every == 0 if self.step and every else self.step == 0 and config.evaluate_first
        return due and self.step < total_steps and self.own_evaluation is None

    def progress(self, learning_rate: float) -> dict[str, Any]:
        """What every log line begins with."""
        counts = {"step": self.step, "tokens": self.tokens, "learning_rate": learning_rate}
        return {**counts, "skipped_steps": self.skipped_steps}

    def record(self, evaluation: dict[str, Any]) -> None:
        """Remember an evaluation of this very step. A loss that is no number is no best one."""
        self.evaluation = {"step": self.step, **evaluation}
        losses = [loss for loss in (self.best_loss, evaluation["loss"]) if loss is not None and math.isfinite(loss)]
        self.best_loss = min(losses, default=None)


def write_state(folder: Path, state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Write progress and the tensors of :func:`state_tensors` into an existing folder, beside the model."""
    values = {**asdict(state), "data": dict(state.data._asdict())}
    (folder / STATE_FILE).write_text(json.dumps(values, indent=2), encoding="utf-8")
    save_file(dict(tensors), folder / TENSORS_FILE)


def state_tensors(optimizer: torch.optim.Optimizer, unlogged: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Optimizer, random generators, and what was measured since the last log line, on the CPU; empty in all processes
    but the first. Every process has to ask.
    """
    tensors = {}
    for name, tensor in _optimizer_tensors(optimizer):
        together = whole(tensor.detach())
        if is_first():
            tensors[name] = together.cpu().contiguous()
    measured = {UNLOGGED + name: tensor.cpu().contiguous() for name, tensor in unlogged.items()}
    return tensors | _generators() | measured if is_first() else {}


def read_state(folder: Path) -> TrainState:
    """Progress only (cheap).

    Raises:
        CheckpointError: missing or damaged file.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {STATE_FILE}: it holds a model, but no run to resume")
    check_files(folder, [STATE_FILE])
    try:
        values = read_json(path, MAX_STATE_BYTES, finite=False)  # a loss may be none
        state = TrainState(**{**values, "data": BatchState(**values["data"])})
        _require_progress(state)
        return state
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _require_progress(state: TrainState) -> None:
    """Raise a ValueError unless every field holds what the loop writes there."""
    counts = {"step": state.step, "tokens": state.tokens, "data.epoch": state.data.epoch, "data.row": state.data.row}
    counts |= {"skipped_steps": state.skipped_steps, "skipped_in_a_row": state.skipped_in_a_row}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise ValueError(f"{name} is {shown(value)}, but must be a whole number of at least 0")
    losses: dict[str, Any] = {"best_loss": state.best_loss}
    if state.evaluation is not None:
        if not isinstance(state.evaluation, dict):
            raise ValueError(f"evaluation is {shown(state.evaluation)}, but must be figures by name, or null")
        losses["evaluation.loss"] = state.evaluation["loss"]
    for name, loss in losses.items():
        if not (loss is None and name == "best_loss") and (isinstance(loss, bool) or not isinstance(loss, int | float)):
            raise ValueError(f"{name} is {shown(loss)}, but must be a number")
    if not isinstance(state.finished, bool):
        raise ValueError(f"finished is {shown(state.finished)}, but must be true or false")


def restore(folder: Path, optimizer: torch.optim.Optimizer) -> tuple[TrainState, dict[str, Tensor]]:
    """Read progress, and put optimizer and random generators back. Returns what was measured since the last log line,
    too.

    Raises:
        CheckpointError: missing, damaged, or of another model.
    """
    state = read_state(folder)
    path = folder / TENSORS_FILE
    check_files(folder, [TENSORS_FILE])
    try:
        if path.exists() and not path.is_file():  # a pipe or device would be waited for, or have no end
            raise ValueError("it is no regular file")
        tensors = load_file(path)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is missing, damaged or truncated: {error}") from error
    _restore_optimizer(optimizer, tensors, path)
    if "rng.cpu" not in tensors:
        raise CheckpointError(f"{path}: tensor rng.cpu is missing")
    try:
        torch.set_rng_state(tensors["rng.cpu"])
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                if (saved := tensors.get(f"rng.cuda.{i}")) is not None:
                    torch.cuda.set_rng_state(saved, i)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: the random generators' state is none: {error}") from error
    measured = {name: tensor for name, tensor in tensors.items() if name.startswith(UNLOGGED)}
    return state, {name.removeprefix(UNLOGGED): tensor for name, tensor in measured.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for i, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"optimizer.{i}.{name}", value


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            if (parts := _OPTIMIZER.fullmatch(name)) is None:
                raise CheckpointError(f"{path}: tensor {shown(name)} is none of an optimizer's")
            state.setdefault(int(parts[1]), {})[parts[2]] = tensor
    for i, values in state.items():
        if (
            i >= len(parameters)
            or len(values) != 3
            or any(
                not t.is_floating_point() or t.shape != (torch.Size() if key == "step" else parameters[i].shape)
                for key, t in values.items()
            )
        ):
            raise CheckpointError(f"{path}: the state of parameter {i} does not fit the model")
    if state and len(state) != len(parameters):
        raise CheckpointError(f"{path} holds the state of {len(state)} parameters, but the model has {len(parameters)}")
    for i, values in state.items():
        values.update({key: cut_as(tensor, parameters[i]) for key, tensor in values.items() if tensor.dim()})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generators() -> dict[str, Tensor]:
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states
