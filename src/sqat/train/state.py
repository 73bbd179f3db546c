"""What a training run must remember to go on to the same bits, on disk beside the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqat.data.batches import BatchState
from sqat.errors import CheckpointError

STATE_FILE = "training.json"
TENSORS_FILE = "training.safetensors"
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


def write_state(
    folder: Path, state: TrainState, optimizer: torch.optim.Optimizer, unlogged: Mapping[str, Tensor]
) -> None:
    """Write progress, optimizer, random generators, and what was measured since the last log line, into an existing
    folder, beside the model.
    """
    values = {**asdict(state), "data": dict(state.data._asdict())}
    (folder / STATE_FILE).write_text(json.dumps(values, indent=2), encoding="utf-8")
    measured = {UNLOGGED + name: tensor.cpu().contiguous() for name, tensor in unlogged.items()}
    save_file({**_optimizer_tensors(optimizer), **_generators(), **measured}, folder / TENSORS_FILE)


def read_state(folder: Path) -> TrainState:
    """Progress only (cheap).

    Raises:
        CheckpointError: missing or damaged file.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {STATE_FILE}: it holds a model, but no run to resume")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TrainState(**{**values, "data": BatchState(**values["data"])})
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def restore(folder: Path, optimizer: torch.optim.Optimizer) -> tuple[TrainState, dict[str, Tensor]]:
    """Read progress, and put optimizer and random generators back. Returns what was measured since the last log line,
    too.

    Raises:
        CheckpointError: missing, damaged, or of another model.
    """
    state = read_state(folder)
    path = folder / TENSORS_FILE
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing, damaged or truncated: {error}") from error
    _restore_optimizer(optimizer, tensors, path)
    if "rng.cpu" not in tensors:
        raise CheckpointError(f"{path}: tensor rng.cpu is missing")
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if (saved := tensors.get(f"rng.cuda.{i}")) is not None:
                torch.cuda.set_rng_state(saved, i)
    measured = {name: tensor for name, tensor in tensors.items() if name.startswith(UNLOGGED)}
    return state, {name.removeprefix(UNLOGGED): tensor for name, tensor in measured.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    per_parameter = optimizer.state_dict()["state"]
    return {
        f"optimizer.{i}.{name}": value.detach().cpu().contiguous()
        for i, values in per_parameter.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    for i, values in state.items():
        if i >= len(parameters) or any(t.dim() and t.shape != parameters[i].shape for t in values.values()):
            raise CheckpointError(f"{path}: the state of parameter {i} does not fit the model")
    if state and len(state) != len(parameters):
        raise CheckpointError(f"{path} holds the state of {len(state)} parameters, but the model has {len(parameters)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generators() -> dict[str, Tensor]:
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states
