"""The checkpoints of a run: written whole, newest few and best kept, latest found."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sqat.checkpoint import write_folder
from sqat.checkpoint.store import recover
from sqat.durable import remove_folder, remove_remains, writing
from sqat.errors import CheckpointError
from sqat.train.state import TrainState, read_state, write_state

if TYPE_CHECKING:
    from sqat.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})")


def save_checkpoint(
    run: Path,
    write_model: Callable[[Path], None],
    state: TrainState,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    *,
    keep: int,
) -> Path:
    """Write `checkpoints/step-…` of a run, the model's files by `write_model`, the state's `tensors` as
    :func:`sqat.train.state.state_tensors` gives them; then drop all but the `keep` newest, the best (lowest loss), and
    those that may be the best, since their state cannot be read.

    Raises:
        StorageError: the system refuses; earlier checkpoints stay as they are.
    """
    folder = run / FOLDER / f"step-{state.step:08d}"
    with write_folder(folder) as temporary:
        write_model(temporary)
        write_state(temporary, state, tensors)
        if tokenizer is not None:
            tokenizer.save(temporary)
    _rotate(run, keep)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first; one that a crash left moved aside is put back."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    for previous in folder.glob(".step-*.previous"):
        recover(folder / previous.name.removeprefix(".").removesuffix(".previous"))
    return sorted(
        (path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=lambda path: int(path.name[5:])
    )


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint, or `None`."""
    checkpoints = list_checkpoints(run)
    return checkpoints[-1] if checkpoints else None


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, or the newest where none was evaluated, or `None`.

    One whose `training.json` is damaged is passed over, with a warning. Weights are not looked at: loading them says
    whether they are whole, so that no worse model ever stands in for the best one unasked.
    """
    checkpoints = list_checkpoints(run)
    return _best(_read_states(checkpoints)) or (checkpoints[-1] if checkpoints else None)


def find_model(path: str | Path) -> Path:
    """The checkpoint folder that a user means: the folder itself, or a run's best checkpoint.

    Raises:
        CheckpointError: neither.
    """
    path = Path(path)
    recover(path)
    if (path / "config.json").is_file():
        return path
    if (best := best_checkpoint(path)) is not None:
        return best
    raise CheckpointError(
        f"{path} is neither a checkpoint (a folder with config.json) nor a run (a folder with {FOLDER}/step-…)"
    )


def _read_states(checkpoints: list[Path]) -> dict[Path, TrainState]:
    """In their order, without those that cannot be read, each with a warning."""
    states = {}
    for path in checkpoints:
        try:
            states[path] = read_state(path)
        except CheckpointError as error:
            logger.warning("passing over %s", error)
    return states


def _best(states: dict[Path, TrainState]) -> Path | None:
    """Where the lowest validation loss is of these very weights; `None` where none was evaluated at its own step, or to
    no number.
    """
    evaluations = {path: state.own_evaluation for path, state in states.items()}
    losses = [(found["loss"], path) for path, found in evaluations.items() if found and math.isfinite(found["loss"])]
    return min(losses)[1] if losses else None


def _rotate(run: Path, keep: int) -> None:
    checkpoints = list_checkpoints(run)
    remove_remains(run / FOLDER)
    states = _read_states(checkpoints)
    kept = {*[*states][-keep:], _best(states)}
    for path in states:  # what cannot be read may be the best
        if path not in kept:
            with writing(path):
                remove_folder(path)
