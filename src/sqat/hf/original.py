"""The original's checkpoints (RxNN's layout) for `from_pretrained`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig
from transformers.utils import cached_file

from sqat.checkpoint import load_model
from sqat.checkpoint.model_files import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE, expected_shapes, native_tensors
from sqat.checkpoint.rxnn import is_rxnn_config
from sqat.config import ModelConfig
from sqat.errors import ConfigError
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.core import prefixed, to_model_config, to_transformers_config
from sqat.hub.transfer import download
from sqat.model import Decoder
from sqat.untrusted import read_json

_FOR_THE_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def read_original(
    name: str | Path, *, config: object = None, **options: Any
) -> tuple[SQATConfig, dict[str, Tensor]] | None:
    """Configuration and tensors of a checkpoint in the original's layout, or `None` where it is of another layout, or
    not there (which `from_pretrained` then says).

    Args:
        name: a folder, or a repository such as "ReactiveAI/SQAT-mm".
        config: the caller's, or where it is; taken instead of the checkpoint's own, if the tensors fit it.
        options: those of `from_pretrained`; `revision`, `token` and others are for the Hub.

    Raises:
        ConfigError: `config` is of another kind of model, or of other shapes.
        CheckpointError: its layout is the original's, but files are missing or damaged.
    """
    options = {key: options[key] for key in _FOR_THE_HUB if options.get(key) is not None}
    path = cached_file(name, CONFIG_FILE, _raise_exceptions_for_missing_entries=False, **options)
    if path is None:
        return None
    try:
        values = read_json(Path(path), MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        return None
    if not is_rxnn_config(values):
        return None
    folder = Path(name) if Path(name).is_dir() else download(str(name), [CONFIG_FILE, WEIGHTS_FILE], **options)
    model = load_model(folder, dtype=None)
    own = to_transformers_config(model.config)
    if config is not None:
        own = _given(config)
        _require_shapes(to_model_config(own), model, str(name))
    return own, prefixed(native_tensors(model))


def _given(config: object) -> SQATConfig:
    if isinstance(config, str | os.PathLike):
        config = AutoConfig.from_pretrained(config, trust_remote_code=False)
    if not isinstance(config, SQATConfig):
        raise ConfigError(f"config is of type {type(config).__name__}, but must be an SQATConfig for such a checkpoint")
    return config


def _require_shapes(config: ModelConfig, model: Decoder, name: str) -> None:
    there = {key: tensor.shape for key, tensor in native_tensors(model).items()}
    if expected_shapes(config) == there:
        return
    given, own = config.to_dict(), model.config.to_dict()
    differences = ", ".join(f"{key} is {given[key]!r}, there {own[key]!r}" for key in own if given[key] != own[key])
    raise ConfigError(f"config does not fit the tensors of {name}: {differences}")
