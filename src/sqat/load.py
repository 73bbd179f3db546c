"""The model and tokenizer that a user names: a checkpoint's folder, or a run's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sqat import checkpoint as checkpoints
from sqat.errors import CheckpointError
from sqat.train.checkpoints import find_model

if TYPE_CHECKING:
    from sqat.data.tokenizer import Tokenizer
    from sqat.model import Decoder


def load_model(
    folder: str | Path, *, dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Read a model, in evaluation mode.

    Args:
        folder: a checkpoint, in this package's layout or RxNN's, or a run's folder, of which the best one is taken.
        dtype: type to convert the weights to; `None` keeps the file's.
        device: where to put the model.

    Raises:
        CheckpointError: files are missing, damaged or do not match the folder's checksums; tensors are missing, extra
            or of the wrong shape; or the architecture is unknown. The message names them.
    """
    return checkpoints.load_model(find_model(folder), dtype=dtype, device=device)


def load_with_tokenizer(checkpoint: str | Path, tokenizer: Path | None = None) -> tuple[Decoder, Tokenizer]:
    """Load the model of a checkpoint or run folder, with the tokenizer beside it or the one given.

    Raises:
        CheckpointError: there is no checkpoint, or no tokenizer.
        ConfigError: the tokenizer has more entries than the model.
    """
    from sqat.data.tokenizer import Tokenizer, require_room

    folder = find_model(checkpoint)
    if tokenizer is None and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json: name one with --tokenizer")
    model, text_tokenizer = checkpoints.load_model(folder), Tokenizer.load(tokenizer or folder)
    require_room(text_tokenizer, model.config.vocab_size)
    return model, text_tokenizer
