"""The model and tokenizer that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqat.errors import CheckpointError

if TYPE_CHECKING:
    from sqat.data.tokenizer import Tokenizer
    from sqat.model import Decoder


def load_with_tokenizer(checkpoint: Path, tokenizer: Path | None = None) -> tuple[Decoder, Tokenizer]:
    """Load the model of a checkpoint or run folder, with the tokenizer beside it or the one given.

    Raises:
        CheckpointError: there is no checkpoint, or no tokenizer.
        ConfigError: the tokenizer has more entries than the model.
    """
    from sqat.checkpoint import load_model
    from sqat.data.tokenizer import Tokenizer, require_room
    from sqat.train.checkpoints import find_model

    folder = find_model(checkpoint)
    if tokenizer is None and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json: name one with --tokenizer")
    model, text_tokenizer = load_model(folder), Tokenizer.load(tokenizer or folder)
    require_room(text_tokenizer, model.config.vocab_size)
    return model, text_tokenizer
