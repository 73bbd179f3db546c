"""The batch of a skipped step, saved for inspection."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from sqat.checkpoint.store import write_folder
from sqat.data.batches import Batch, BatchState
from sqat.train.feed import feed

if TYPE_CHECKING:
    from sqat.train.loop import Trainer
    from sqat.train.step import StepSums

logger = logging.getLogger(__name__)

FOLDER = "skipped"
KEPT = 20  # newest ones; a batch of 64 rows of 1,024 tokens takes 2 MB


def save_bad_batch(trainer: Trainer, step: int, before: BatchState, sums: StepSums) -> Path | None:
    """Write `skipped/step-…-rank-…` into the run's folder, whole or not at all: `batch.safetensors`, the micro-batches'
    tensors by number and name, (rows, tokens); `batch.json`, where they come from, what was found, and their text, row
    by row. Of many, the newest stay.

    Returns:
        the folder; `None` where the run has none, or the disk takes no more (training goes on, with a warning).
    """
    if trainer.out is None:
        return None
    rank = trainer.accelerator.process_index
    folder = trainer.out / FOLDER / f"step-{step:08d}-rank-{rank}"
    accumulation, device = trainer.config.gradient_accumulation, trainer.accelerator.device
    micro_batches = next(feed(trainer.batches, before, accumulation, device)).micro_batches  # a function of its place
    about = {
        "step": step,
        "rank": rank,
        **before.to_dict(),
        "loss": str(float(sums.loss / sums.targets)),  # as text: JSON has no numbers that are none
        "gradient_norm": str(float(sums.grad_norm)),
        "text": [_text(batch, trainer.tokenizer) for batch in micro_batches],
    }
    try:
        with write_folder(folder) as temporary:
            save_file(_tensors(micro_batches), temporary / "batch.safetensors")
            (temporary / "batch.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    except OSError as error:
        logger.warning("the batch of step %d cannot be saved: %s", step, error)
        return None
    for old in sorted(folder.parent.glob(f"step-*-rank-{rank}"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _tensors(micro_batches: list[Batch]) -> dict[str, Tensor]:
    return {
        f"{i}.{name}": part.cpu().contiguous()
        for i, batch in enumerate(micro_batches)
        for name, part in batch._asdict().items()
        if isinstance(part, Tensor)
    }


def _text(batch: Batch, tokenizer: Any) -> list[str] | None:
    return None if tokenizer is None else [tokenizer.decode(row) for row in batch.inputs.tolist()]
