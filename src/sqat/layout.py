"""A checkpoint in the other layout: this package's, or the original system's."""

from __future__ import annotations

from pathlib import Path

from sqat.checkpoint import load_model, write_folder, write_model
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer
from sqat.model_card import CARD_FILE, model_card, read_origin


def write_layout(checkpoint: Path, out: Path, layout: str) -> None:
    """Write a new folder, in one piece; the tokenizer goes along, and a model card.

    Args:
        layout: "sqat" or "rxnn".

    Raises:
        CheckpointError: `checkpoint` cannot be read.
        ConfigError: another layout, or a model that it cannot hold.
        StorageError: `out` cannot be written.
    """
    model = load_model(checkpoint, dtype=None)
    with write_folder(out) as temporary:
        write_model(model, temporary, layout=layout)
        if tokenizer := (checkpoint / TOKENIZER_FILE).is_file():
            Tokenizer.load(checkpoint).save(temporary)
        card = model_card(model.config, layout, origin=read_origin(checkpoint), tokenizer=tokenizer)
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
