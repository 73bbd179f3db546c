"""Checkpoints that carry their modelling code: they load in `transformers` where this package is not installed."""

from __future__ import annotations

from pathlib import Path

from sqat.data.tokenizer import Tokenizer
from sqat.hf.beside import AUTO_MAP
from sqat.hf.core import from_decoder
from sqat.hf.tokenizer import write_tokenizer
from sqat.model import Decoder


def write_native(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write weights, configuration, the two modelling files, generation settings and tokenizer into an existing
    folder; returns the architecture's name.
    """
    converted = from_decoder(model)
    converted.config.auto_map = dict(AUTO_MAP)
    converted.save_pretrained(folder)  # with the code, which it now names
    write_tokenizer(tokenizer, folder)
    return "SQAT, with its modelling code"
