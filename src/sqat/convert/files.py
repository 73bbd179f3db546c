"""Stock checkpoints: found in a folder or on the Hub, read, and written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from sqat.checkpoint.store import write_folder
from sqat.convert.architectures import require_known
from sqat.convert.heads import Groups
from sqat.convert.plan import ConversionPlan
from sqat.convert.tokenizer import TOKENIZER_FILES
from sqat.errors import CheckpointError, ConfigError
from sqat.folders import require_free

CONFIG_FILE = "config.json"
RECORD_FILE = "conversion.json"
_HUB_FILES = (*TOKENIZER_FILES, "*.json", "*.safetensors")


def locate(model: str | Path) -> Path:
    """The folder of a checkpoint: `model` itself, or what the Hub has under that id, fetched into the client's cache.

    Raises:
        CheckpointError: neither.
    """
    folder = Path(model).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}")
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{str(model)!r} is no local folder, and cannot be had from the Hub: {error}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint of a known architecture, stock or with heads of each layer's own count.

    Raises:
        CheckpointError: damaged.
        ConfigError: another architecture.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        require_known(str(values.get("model_type")), mixed=True)
        return AutoConfig.from_pretrained(folder)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_model(folder: Path, *, dtype: Any = "auto") -> PreTrainedModel:
    """The causal language model in a checkpoint, in evaluation mode.

    Raises:
        CheckpointError: missing or damaged weights.
        ConfigError: an architecture that is not known here.
    """
    read_config(folder)
    with quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]}")
    return model.eval()


def write_conversion(
    model: PreTrainedModel, plan: ConversionPlan, groups: Sequence[Groups], source: Path, name: str, out: Path
) -> None:
    """Write a converted model into an existing folder, with the source's tokenizer and a record of what was done.

    Args:
        source: the folder that the model came from.
        name: what the user called it.
    """
    with quiet():
        model.save_pretrained(out)  # with its modelling code, where that is ours
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, out / path.name)
    record = {
        "source": name,
        "method": plan.method,
        "score": plan.score if plan.method != "mean" else None,
        "layers": plan.layers,
        "before": asdict(plan.before),
        "after": asdict(plan.after),
        "merged_heads": groups,  # per layer, for each query head
    }
    (out / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes `out` at the end.

    Raises:
        ConfigError: `out` is there and not an empty folder.
    """
    require_free(out, "--out")
    with write_folder(out) as temporary:
        yield temporary


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
