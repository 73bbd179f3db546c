"""What a run needs to resume bit for bit: progress, optimizer state, random generators.

A checkpoint has them in `training.json` and `training.safetensors`, beside the model. An evaluation of its weights that
came after it was written is in `evaluation.json`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sqat.checksums import check_files
from sqat.config import Config
from sqat.data.batches import BatchState
from sqat.durable import replace_file
from sqat.errors import CheckpointError
from sqat.run_config import TrainConfig
from sqat.train.distributed import is_first, shard_like, whole
from sqat.untrusted import read_json

STATE_FILE = "training.json"
TENSORS_FILE = "training.safetensors"
EVALUATION_FILE = "evaluation.json"
FORMER_METRICS = {"card_loss": "padded_loss", "card_accuracy": "padded_accuracy"}  # their names in older files
_OPTIMIZER = "optimizer."


@dataclass
class TrainState(Config):
    """Progress of a run."""

    step: int = 0  # steps done
    tokens: int = 0  # training targets seen
    data: BatchState = field(default_factory=lambda: BatchState(0, 0))  # where the next batch starts
    best_loss: float | None = None  # lowest validation loss so far
    evaluation: dict[str, Any] | None = None  # the latest one
    finished: bool = False  # all steps are done, and the last evaluation is
    skipped_steps: int = 0  # of all steps, those whose loss or gradient was NaN or Inf
    skipped_in_a_row: int = 0  # the latest ones

    @property
    def own_evaluation(self) -> dict[str, Any] | None:
        """The evaluation of the weights of this very step; `None` if the latest one is of an earlier step."""
        return self.evaluation if self.evaluation and self.evaluation.get("step") == self.step else None

    def owes_evaluation(self, config: TrainConfig, total_steps: int) -> bool:
        """Whether an evaluation comes before the next step: the first one, or one that was due when the run stopped."""
        every = config.evaluate_every
        due = self.step % every == 0 if self.step and every else self.step == 0 and config.evaluate_first
        return due and self.step < total_steps and self.own_evaluation is None

    def record(self, evaluation: Mapping[str, Any]) -> None:
        """Remember an evaluation of this very step. A NaN or infinite loss is never the best."""
        self.evaluation = {"step": self.step, **evaluation}
        losses = [loss for loss in (self.best_loss, evaluation["loss"]) if loss is not None and math.isfinite(loss)]
        self.best_loss = min(losses, default=None)


def write_state(folder: Path, state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Write progress and the tensors of :func:`state_tensors` into an existing folder, beside the model."""
    values = {**asdict(state), "data": dict(state.data._asdict())}
    (folder / STATE_FILE).write_text(json.dumps(values, indent=2), encoding="utf-8")
    save_file(dict(tensors), folder / TENSORS_FILE)


def write_evaluation(folder: Path, state: TrainState) -> None:
    """Add the evaluation of a checkpoint's weights to it, in one step. Raises StorageError."""
    values = {"finished": state.finished, "evaluation": state.own_evaluation}
    replace_file(folder / EVALUATION_FILE, json.dumps({**values, "sha256": _digest(values)}, indent=2))


def read_state(folder: Path) -> TrainState:
    """A checkpoint's progress, with the evaluation of its weights, but no tensors. Raises CheckpointError."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {STATE_FILE}: it holds a model, but no run to resume")
    check_files(folder, [STATE_FILE])
    try:
        values = read_json(path)  # a loss may be NaN
        place = BatchState(**values.pop("data"))
        state = replace(TrainState.from_dict(values), data=place)
        state.evaluation = state.evaluation and current_names(state.evaluation)
        path = folder / EVALUATION_FILE
        if path.is_file():
            later = read_json(path)
            if later.pop("sha256") != _digest(later):
                raise ValueError("its sha256 is not that of its content; delete it, and --resume evaluates again")
            state.record(current_names(later["evaluation"]))
            state.finished = later["finished"]
        return state
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def current_names(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation of any age, with the names that its metrics have now."""
    return {FORMER_METRICS.get(name, name): value for name, value in evaluation.items()}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state by parameter name and random generators, on the CPU; empty on all ranks but the first. Every rank
    has to call it.
    """
    tensors = {}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            together = whole(value.detach())
            if is_first():
                tensors[f"{_OPTIMIZER}{names[parameter]}.{key}"] = together.cpu().contiguous()
    if not is_first():
        return {}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Read a checkpoint's progress, and put optimizer and random generators back. Raises CheckpointError."""
    state = read_state(folder)
    path = folder / TENSORS_FILE
    check_files(folder, [TENSORS_FILE])
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is missing, damaged or truncated: {error}") from error
    try:
        _restore_optimizer(model, optimizer, tensors)
        torch.set_rng_state(tensors["rng.cpu"])
        for i in range(torch.cuda.device_count()):
            if (saved := tensors.get(f"rng.cuda.{i}")) is not None:
                torch.cuda.set_rng_state(saved, i)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit the model, or is damaged: {error}") from error
    return state


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the optimizer's state back; a run that has not begun has none. Raises KeyError if some of it is missing."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    if any(name.startswith(_OPTIMIZER) for name in tensors):
        for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            own = f"{_OPTIMIZER}{names[parameter]}."
            if f"{own}step" not in tensors:
                own = f"{_OPTIMIZER}{i}."  # older checkpoints number parameters, in the optimizer's order
            moments = {key: shard_like(tensors[own + key], parameter) for key in ("exp_avg", "exp_avg_sq")}
            state[i] = {"step": tensors[own + "step"], **moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
