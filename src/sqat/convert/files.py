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
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from sqat.checkpoint.model_files import CONFIG_FILE, require_inside
from sqat.checkpoint.store import write_folder
from sqat.checksums import check_files
from sqat.convert.heads import Groups
from sqat.convert.plan import ConversionPlan
from sqat.convert.stock_files import read_plain_json, require_plain_config, require_sizes, require_weights, shorten
from sqat.convert.tokenizer import TOKENIZER_FILES
from sqat.convert.verify import Verification
from sqat.errors import CheckpointError, ConfigError
from sqat.folders import require_free
from sqat.hub import FAILURES, cause, usable_token, without_tokens
from sqat.model_card import CARD_FILE, RECORD_FILE, public_name, read_origin, stock_card
from sqat.untrusted import shown

_HUB_FILES = (*TOKENIZER_FILES, "*.json", "*.safetensors")


def locate(model: str | Path) -> Path:
    """The folder of a checkpoint: `model` itself, or what the Hub has under that id, fetched into the client's cache.

    Raises:
        CheckpointError: neither.
    """
    try:
        folder = Path(model).expanduser()
        there = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{shown(str(model))} names no folder: {error}") from error
    if (folder / CONFIG_FILE).is_file():
        return folder
    if there:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}")
    usable_token()
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, *FAILURES) as error:
        problem = f"{str(model)!r} is no local folder, and cannot be had from the Hub"
        raise CheckpointError(f"{problem}: {without_tokens(error)}") from cause(error)


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint of a known architecture, stock or with heads of each layer's own count.

    Raises:
        CheckpointError: damaged.
        ConfigError: another architecture.
    """
    path = folder / CONFIG_FILE
    check_files(folder, [CONFIG_FILE])
    try:
        require_plain_config(read_plain_json(path))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        require_sizes(config)
        return config
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # its classes raise whatever a value of the wrong type leads to
        raise CheckpointError(f"{path} cannot be read: {shorten(error)}") from error


def read_model(folder: Path, *, dtype: Any = "auto") -> PreTrainedModel:
    """The causal language model in a checkpoint, in evaluation mode.

    Raises:
        CheckpointError: missing or damaged weights.
        ConfigError: an architecture that is not known here.
    """
    config = read_config(folder)
    check_files(folder, [path.name for path in folder.glob("model*.safetensors*")])
    require_weights(folder, config)
    with quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,  # and nothing that would have to be unpickled
                local_files_only=True,
            )
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be read: {shorten(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]}")
    return model.eval()


def write_conversion(
    model: PreTrainedModel,
    plan: ConversionPlan,
    groups: Sequence[Groups],
    source: Path,
    name: str,
    out: Path,
    *,
    figures: Verification | None = None,
    text: str | None = None,
) -> None:
    """Write a converted model into an existing folder, with the source's tokenizer, a record of what was done and a
    model card.

    Args:
        source: the folder that the model came from.
        name: what the user called it.
        figures, text: of the verification, if there was one, and what it read.
    """
    with quiet():
        model.save_pretrained(out)  # with its modelling code, where that is ours
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            require_inside(path)  # a link could bring any file of the user's into what may be published
            shutil.copyfile(path, out / path.name)
    record = {
        "source": public_name(name),
        "base_model": name if source != Path(name).expanduser() else None,  # the Hub's, or only a folder here
        "method": plan.method,
        "score": plan.score if plan.method != "mean" else None,
        "layers": plan.layers,
        "before": asdict(plan.before),
        "after": asdict(plan.after),
        "context_length": plan.context_length,
        "verification": None if figures is None else {"text": public_name(str(text)), **scalars(figures)},
        "merged_heads": groups,  # per layer, for each query head
    }
    (out / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")
    tokenizer = any(path for pattern in TOKENIZER_FILES for path in out.glob(pattern))
    form, costs = "stock" if plan.to == "stock" else "mixed", asdict(plan.after)
    card = stock_card(
        plan.new_config, form, plan.heads, costs, plan.context_length, origin=read_origin(out), tokenizer=tokenizer
    )
    (out / CARD_FILE).write_text(card, encoding="utf-8")


def scalars(figures: Verification) -> dict[str, float]:
    """The figures of a verification that are one number."""
    return {name: value for name, value in figures.to_dict().items() if isinstance(value, int | float)}


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
