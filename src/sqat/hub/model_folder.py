"""Folders that hold a model: in which form, which files belong to it, and whether it can be loaded."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from sqat.checkpoint import load_model
from sqat.checkpoint.model_files import CONFIG_FILE, MODEL_TYPE, read_config
from sqat.checkpoint.rxnn_config import is_rxnn_config
from sqat.convert.architectures import MODEL_TYPES
from sqat.convert.files import TOKENIZER_FILES, read_model
from sqat.convert.files import read_config as read_stock_config
from sqat.convert.modeling_mixed_heads import PREFIX
from sqat.convert.tokenizer import StockTokenizer
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer
from sqat.errors import CheckpointError
from sqat.model_card import CARD_FILE
from sqat.model_card.origin import RECORD_FILE
from sqat.train.state import TENSORS_FILE
from sqat.untrusted import read_json

# What auto_map names: of `sqat export --to native`, and of `sqat convert --to native`.
CODE = {"native": ("configuration_sqat.py", "modeling_sqat.py"), "mixed": ("modeling_mixed_heads.py",)}

# Everything that a model of any form needs, at the top of its folder. Pickles are no part of it.
PATTERNS = (
    *(CONFIG_FILE, "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *(*TOKENIZER_FILES, *CODE["native"], *CODE["mixed"], RECORD_FILE, CARD_FILE),
)
NOT_OF_IT = (TENSORS_FILE, "*/*")  # the optimizer's state; folders, where repositories keep other checkpoints


class ModelFolder(NamedTuple):
    """A model that was loaded, as a check, and let go again."""

    folder: Path
    form: str  # see sqat.model_card.loading.FORMS
    config: Any  # ModelConfig, or of a stock model PreTrainedConfig
    tokenizer: bool


def belongs(name: str) -> bool:
    """Whether a file of this name, relative to a folder, is part of a model there."""
    return not any(fnmatchcase(name, left) for left in NOT_OF_IT) and any(fnmatchcase(name, p) for p in PATTERNS)


def model_files(folder: Path) -> list[str]:
    """The names of a model's files in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and belongs(path.name))


def form_of(folder: Path) -> str:
    """The form of the model in a folder, by its config.json.

    Raises:
        CheckpointError: no such file, or one of a model that is unknown here.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}")
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if is_rxnn_config(values):
        return "rxnn"
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type in MODEL_TYPES:
        return "stock"
    if isinstance(model_type, str) and model_type.startswith(PREFIX):
        return "mixed"
    if model_type != MODEL_TYPE:
        raise CheckpointError(
            f"{path}: model_type is {model_type!r}, but must be one of {MODEL_TYPE}, {', '.join(MODEL_TYPES)}"
        )
    return "native" if "auto_map" in values else "sqat"


def check_model(folder: Path) -> ModelFolder:
    """Load the model in a folder, and its tokenizer if there is one.

    Raises:
        CheckpointError, ConfigError, DataError: it cannot be loaded; the message says why.
    """
    form = form_of(folder)
    if missing := [name for name in CODE.get(form, ()) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder / CONFIG_FILE} has an auto_map, but {', '.join(missing)} is not there")
    if form in ("stock", "mixed"):
        if not any(folder.glob("*.safetensors")):
            raise CheckpointError(f"{folder} has no safetensors: weights in other files are neither read nor moved")
        read_model(folder)
        has_tokenizer = any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
        if has_tokenizer:
            StockTokenizer(folder)
        return ModelFolder(folder, form, read_stock_config(folder), has_tokenizer)
    load_model(folder, dtype=None)
    config = read_config(folder)[0]
    has_tokenizer = (folder / TOKENIZER_FILE).is_file()
    if has_tokenizer and (entries := Tokenizer.load(folder).vocab_size) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {entries} entries, but the model's vocab_size is {config.vocab_size}"
        )
    return ModelFolder(folder, form, config, has_tokenizer)
