"""A run's checkpoints when one of them is damaged: going on from the newest that is whole."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

from sqat.checksums import MANIFEST, check_files
from sqat.errors import CheckpointError
from sqat.train.checkpoints import list_checkpoints

logger = logging.getLogger(__name__)


def newest_whole_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose files all are what was written, or `None`: the run has no checkpoints.

    Damaged ones that are newer are set aside under a name that nothing takes for a checkpoint, with a warning. They
    are not deleted.

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
            logger.warning("%s. This checkpoint is now %s; going on from %s", reason, _aside(path), checkpoint)
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"all checkpoints of {run} are damaged, so it cannot be resumed: {damaged[0][1]}"
        ) from damaged[0][1]
    return None


def _aside(checkpoint: Path) -> Path:
    """Rename a checkpoint; returns where it is now."""
    names = (checkpoint.with_name(f"{checkpoint.name}.damaged{'' if n == 1 else f'-{n}'}") for n in count(1))
    free = next(name for name in names if not name.exists())
    checkpoint.rename(free)
    return free
