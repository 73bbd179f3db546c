"""The forms that a model's files come in: which one a folder holds, and export to another.

Every form has one name, in `sqat export --to`, in `sqat push --to` and in :data:`FORMATS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sqat.checkpoint import load_model, write_folder, write_model
from sqat.checkpoint.model_files import CONFIG_FILE, MODEL_TYPE, read_config_file
from sqat.checkpoint.rxnn import is_rxnn_config
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer, require_room
from sqat.errors import CheckpointError, ConfigError
from sqat.folders import require_free
from sqat.model import Decoder
from sqat.model_card import CARD_FILE, model_card, read_origin
from sqat.train.checkpoints import find_model


class Format(NamedTuple):
    """A form that models can be written in."""

    meaning: str
    writer: str  # "module:function", taking (model, tokenizer or None, folder) and returning what was written, in words


FORMATS = {
    "sqat": Format("this package's own layout", "sqat.formats:write_sqat"),
    "rxnn": Format("the layout of RxNN, the original system", "sqat.formats:write_rxnn"),
    "transformers": Format("for transformers, with its modelling code", "sqat.hf.pretrained:write_transformers"),
    "stock": Format("the Llama, Mistral or Mixtral that the model is", "sqat.hf.stock:write_stock"),
    "gguf": Format("for llama.cpp", "sqat.hf.gguf_file:write_gguf"),
    "onnx": Format("for ONNX runtimes", "sqat.hf.onnx_file:write_onnx"),
}

Writer = Callable[[Decoder, Tokenizer | None, Path], str]


def export(checkpoint: str | Path, out: str | Path, to: str = "transformers") -> str:
    """Write a checkpoint in another form, with its tokenizer and a model card.

    Args:
        checkpoint: a folder that :func:`sqat.load_model` reads, or a run, whose best checkpoint is taken.
        out: a new or an empty folder; it appears whole or not at all.
        to: the form, one of :data:`FORMATS`.

    Returns:
        What was written, in words.

    Raises:
        ConfigError: an unknown form, a folder that holds something, or a model that the form cannot hold exactly.
        CheckpointError: there is no checkpoint, or a damaged one.
        DataError: a damaged tokenizer.
        StorageError: `out` cannot be written.
    """
    if to not in FORMATS:
        raise ConfigError(f"to is {to!r}, but must be one of {', '.join(FORMATS)}")
    out = Path(out).expanduser()
    require_free(out, "out")
    folder = find_model(checkpoint)
    model = load_model(folder, dtype=None)
    tokenizer = Tokenizer.load(folder) if (folder / TOKENIZER_FILE).is_file() else None
    if tokenizer is not None:
        require_room(tokenizer, model.config.vocab_size)
    module, _, name = FORMATS[to].writer.partition(":")
    write: Writer = getattr(importlib.import_module(module), name)
    card = model_card(model.config, to, origin=read_origin(folder), tokenizer=tokenizer is not None)
    with write_folder(out) as temporary:
        written = write(model, tokenizer, temporary)
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    return written


def write_sqat(model: Decoder, tokenizer: Tokenizer | None, folder: Path, layout: str = "sqat") -> str:
    """Write a model and its tokenizer in a layout of :func:`sqat.save_model` into an existing folder."""
    write_model(model, folder, layout=layout)
    if tokenizer is not None:
        tokenizer.save(folder)
    return f"a checkpoint in {layout} layout"


write_rxnn = partial(write_sqat, layout="rxnn")


def detect(folder: Path) -> str:
    """The form of the model in a folder: one of :data:`FORMATS`, or "mixed" for what `sqat convert` writes if layers
    differ in their heads.

    Raises:
        CheckpointError: no model there, or one of an unknown kind.
    """
    for form, name in (("gguf", "model.gguf"), ("onnx", "model.onnx")):
        if (folder / name).is_file():
            return form
    values = read_config_file(folder)
    if is_rxnn_config(values):
        return "rxnn"
    model_type = values.get("model_type")
    if model_type == MODEL_TYPE:
        return "transformers" if "auto_map" in values else "sqat"
    from sqat.convert.architectures import CAUSAL  # late: it imports transformers
    from sqat.convert.modeling_mixed_heads import PREFIX

    if model_type in CAUSAL:
        return "stock"
    if isinstance(model_type, str) and model_type.startswith(PREFIX):
        return "mixed"
    raise CheckpointError(
        f"{folder / CONFIG_FILE}: model_type is {model_type!r}, but must be {MODEL_TYPE}, or that of a causal language "
        "model in transformers"
    )
