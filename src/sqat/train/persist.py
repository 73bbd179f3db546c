"""A trainer's checkpoints: one of this very step, written, and going on from the newest that is whole."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sqat.errors import CheckpointError, StorageError
from sqat.train.checkpoints import save_checkpoint
from sqat.train.damage import newest_whole_checkpoint
from sqat.train.distributed import first_does
from sqat.train.finite import require_finite_weights
from sqat.train.parallel import whole_model
from sqat.train.state import restore, state_tensors

if TYPE_CHECKING:
    from sqat.train.loop import Trainer

logger = logging.getLogger(__name__)


def save(trainer: Trainer) -> Path | None:
    """See :meth:`sqat.train.loop.Trainer.save`."""
    trainer.skipped.settle()
    if trainer.out is None:
        return None
    model, tensors = whole_model(trainer.model), state_tensors(trainer.optimizer, trainer.unlogged())
    return first_does(partial(_write, trainer, trainer.out, model, tensors))


def _write(trainer: Trainer, out: Path, model: Any, tensors: dict[str, Tensor]) -> Path:
    """In the first process alone."""
    require_finite_weights(model, trainer.state.step)
    for callback in trainer.callbacks:
        callback.on_save(trainer)
    write, keep = partial(trainer.write_model, model), trainer.config.keep_checkpoints
    try:
        return save_checkpoint(out, write, trainer.state, tensors, trainer.tokenizer, keep=keep)
    except StorageError as error:
        raise StorageError(f"{error}. Earlier checkpoints are whole; --resume goes on from the newest") from error


def resume(trainer: Trainer) -> bool:
    """See :meth:`sqat.train.loop.Trainer.resume`."""
    checkpoint = None if trainer.out is None else first_does(partial(newest_whole_checkpoint, trainer.out))
    if checkpoint is None:
        return False
    trainer.load_weights(checkpoint)
    trainer.state, unlogged = restore(checkpoint, trainer.optimizer)
    try:
        trainer.restore_unlogged(unlogged)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: what was measured since the last log line is damaged") from error
    logger.info("resumed %s at step %d", checkpoint, trainer.state.step)
    return True
