"""Export: a checkpoint in a form that runs elsewhere, in a folder that is there whole or not at all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from sqat.checkpoint import load_model, write_folder
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer
from sqat.errors import ConfigError
from sqat.folders import require_free
from sqat.model import Decoder
from sqat.model_card import CARD_FILE, model_card, read_origin
from sqat.train.checkpoints import find_model

Writer = Callable[[Decoder, Tokenizer | None, Path], str]

FORMATS = {
    "native": "sqat.hf.native:write_native",
    "stock": "sqat.hf.stock:write_stock",
    "gguf": "sqat.hf.llama_cpp:write_gguf",
    "onnx": "sqat.hf.onnx_file:write_onnx",
}


def export(checkpoint: str | Path, out: str | Path, to: str = "native") -> str:
    """Write a checkpoint, or a run's best one, in another form; its tokenizer goes along, and a model card.

    Args:
        checkpoint: of any layout that :func:`sqat.load_model` reads, or a run's folder.
        out: a folder that is not there yet, or empty.
        to: "native" for this architecture with its modelling code beside it, "stock" for the one of `transformers`
            that it is, "gguf" for llama.cpp, "onnx" for ONNX runtimes.

    Returns:
        What was written, in words.

    Raises:
        ConfigError: unknown format, a folder that holds something, or a model that the format cannot hold exactly.
        CheckpointError: no checkpoint there, or a damaged one.
        DataError: a damaged tokenizer.
    """
    if to not in FORMATS:
        raise ConfigError(f"to is {to!r}, but must be one of {', '.join(FORMATS)}")
    out = Path(out)
    require_free(out, "out")
    folder = find_model(checkpoint)
    model = load_model(folder, dtype=None)
    tokenizer = Tokenizer.load(folder) if (folder / TOKENIZER_FILE).is_file() else None
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} entries, but the model's vocab_size is "
            f"{model.config.vocab_size}"
        )
    module, _, name = FORMATS[to].partition(":")
    write: Writer = getattr(importlib.import_module(module), name)
    card = model_card(model.config, to, origin=read_origin(folder), tokenizer=tokenizer is not None)
    with write_folder(out) as temporary:
        written = write(model, tokenizer, temporary)
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    return written
