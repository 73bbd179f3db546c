"""A run's folder: its lock and its checkpoints.

A checkpoint, `checkpoints/step-N/`, appears by a rename, with the checksums of all its files, and is never changed.
Only the evaluation of its weights may be added to it, as `evaluation.json`.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from sqat.checkpoint import write_folder
from sqat.checksums import MANIFEST, check_files
from sqat.data.tokenizer import Tokenizer
from sqat.durable import remove_folder, remove_remains, writing
from sqat.errors import CheckpointError, ConfigError
from sqat.folders import removed_if_unused, run_of
from sqat.lock import locked
from sqat.train.state import EVALUATION_FILE, TrainState, read_state, write_state

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
LOCK_FILE = ".lock"
_NAME = re.compile(r"step-(\d{8,})")


@contextmanager
def run_folder(out: Path | None) -> Iterator[None]:
    """Make a run's folder, if need be, and hold its lock: one process at a time trains in it. After an error a folder
    that was made here and holds nothing else is removed. Nothing without a folder, and on later ranks.

    Raises:
        ConfigError: another process trains there, or `out` is not a folder.
        StorageError: it cannot be made.
    """
    if out is None or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, but must be a folder, or not exist yet")
    with removed_if_unused(out, {LOCK_FILE}), ExitStack() as held:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out / LOCK_FILE, f"a run is going on in {out}", shared=True))
        yield


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or will be."""
    return run / FOLDER / f"step-{step:08d}"


def write_checkpoint(
    run: Path,
    write_model: Callable[[Path], None],
    state: TrainState,
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer | None,
) -> None:
    """Write the checkpoint of `state.step`, with the `tensors` of :func:`sqat.train.state.state_tensors`. After a
    StorageError earlier checkpoints are as they were.
    """
    with write_folder(checkpoint_path(run, state.step)) as temporary:
        write_model(temporary)
        write_state(temporary, state, tensors)
        if tokenizer is not None:
            tokenizer.save(temporary)


def rotate(run: Path, keep: int) -> None:
    """Delete all checkpoints but the `keep` newest, the best (lowest loss), and those whose state cannot be read, since
    they may be the best. Raises StorageError.
    """
    checkpoints = list_checkpoints(run)
    remove_remains(run / FOLDER)
    states = _read_states(checkpoints)
    kept = {*[*states][-keep:], _best(states)}
    for path in states:
        if path not in kept:
            with writing(path):
                remove_folder(path)


def list_checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=lambda path: int(path.name[5:])
    )


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, or the newest if none was evaluated, or `None`.

    One whose progress is damaged is passed over, with a warning. Weights are not looked at: loading them says whether
    they are whole, so that no worse model ever silently stands in for the best one.
    """
    checkpoints = list_checkpoints(run)
    return _best(_read_states(checkpoints)) or (checkpoints[-1] if checkpoints else None)


def find_model(path: str | Path) -> Path:
    """The checkpoint folder that a user means: the folder itself, or a run's best checkpoint.

    Raises:
        CheckpointError: neither.
    """
    path = Path(path).expanduser()
    if (path / "config.json").is_file():
        return path
    if (best := best_checkpoint(run_of(path))) is not None:
        return best
    raise CheckpointError(
        f"{path} is neither a checkpoint (a folder with config.json) nor a run (a folder with {FOLDER}/step-…)"
    )


def newest_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose files all are as they were written, or `None` if the run has no checkpoints.

    Damaged ones that are newer are renamed to `step-N.damaged`, with a warning, and kept. A damaged evaluation alone is
    made again.

    Raises:
        CheckpointError: all are damaged. They stay where they are, so that no run begins anew in their place unasked.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for checkpoint in reversed(list_checkpoints(run)):
        if not (checkpoint / MANIFEST).is_file():
            logger.warning("%s has no %s: read unchecked", checkpoint, MANIFEST)
        try:
            check_files(checkpoint)
        except CheckpointError as error:
            damaged.append((checkpoint, error))
            continue
        for path, reason in damaged:
            logger.warning("%s. This checkpoint is now %s; going on from %s", reason, _set_aside(path), checkpoint)
        try:
            read_state(checkpoint)
        except CheckpointError as error:  # all that was written with it is whole, so it is the evaluation
            logger.warning("%s. The checkpoint is evaluated again", error)
            (checkpoint / EVALUATION_FILE).unlink(missing_ok=True)
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"all checkpoints of {run} are damaged, so it cannot be resumed: {damaged[0][1]}"
        ) from damaged[0][1]
    return None


def _set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint; return its new path."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-again")
    return checkpoint.rename(aside)


def _read_states(checkpoints: list[Path]) -> dict[Path, TrainState]:
    """The progress of each checkpoint, in order; those that cannot be read are left out with a warning."""
    states = {}
    for path in checkpoints:
        try:
            states[path] = read_state(path)
        except CheckpointError as error:
            logger.warning("passing over %s", error)
    return states


def _best(states: dict[Path, TrainState]) -> Path | None:
    """The checkpoint with the lowest finite validation loss of its own weights on the newest data, or `None`."""
    evaluations = {path: state.own_evaluation for path, state in states.items()}
    found = {path: e for path, e in evaluations.items() if e and math.isfinite(e["loss"])}
    data = [e.get("data") for e in found.values()][-1:]  # a run may have gone on with other data
    losses = [(e["loss"], path) for path, e in found.items() if [e.get("data")] == data]
    return min(losses)[1] if losses else None
