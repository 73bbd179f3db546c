"""The original's checkpoints (RxNN's layout) for `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import cached_file

from sqat.checkpoint import load_model
from sqat.checkpoint.model_files import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE, native_tensors
from sqat.checkpoint.rxnn_config import is_rxnn_config
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.core import prefixed, to_transformers_config
from sqat.hub.transfer import download
from sqat.untrusted import read_json

_FOR_THE_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def read_original(name: str | Path, **options: Any) -> tuple[SQATConfig, dict[str, Tensor]] | None:
    """Configuration and tensors of a checkpoint in the original's layout, or `None` where it is of another layout, or
    not there (which `from_pretrained` then says).

    Args:
        name: a folder, or a repository such as "ReactiveAI/SQAT-mm".
        options: those of `from_pretrained`; `revision`, `token` and others are for the Hub.

    Raises:
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
    return to_transformers_config(model.config), prefixed(native_tensors(model))
