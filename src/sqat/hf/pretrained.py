"""What `from_pretrained`, `save_pretrained` and `push_to_hub` do beyond transformers' own, where sqat is installed:
RxNN's checkpoints are read, and a model card and the modelling code are written beside the weights.

`SQATPreTrainedModel.companion` is this module.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoConfig, PreTrainedModel

from sqat.checkpoint import load_model
from sqat.checkpoint.model_files import CONFIG_FILE, WEIGHTS_FILE, expected_shapes, native_tensors
from sqat.checkpoint.rxnn import is_rxnn_config
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer
from sqat.errors import ConfigError
from sqat.hf import configuration_sqat, modeling_sqat
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.core import from_decoder, prefixed, to_model_config, to_transformers_config
from sqat.hf.modeling_sqat import SQATForCausalLM
from sqat.hf.tokenizer import write_tokenizer
from sqat.hub import FAILURES, download, read_text, usable_token
from sqat.model import Decoder
from sqat.model_card import CARD_FILE, Known, kept_or_new, model_card, read_card
from sqat.untrusted import read_json

AUTO_MAP = {
    "AutoConfig": "configuration_sqat.SQATConfig",
    "AutoModel": "modeling_sqat.SQATModel",
    "AutoModelForCausalLM": "modeling_sqat.SQATForCausalLM",
}
_FOR_THE_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_FOR_UPLOADS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


def resolve(name: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments for transformers' `from_pretrained`. For a checkpoint in RxNN's layout they are its configuration
    and tensors in place of a name.
    """
    model = None if name is None else _load_rxnn(name, **options)
    if model is None:
        return name, options
    tensors = native_tensors(model)
    config = options.get("config")  # the caller's, or its location, replaces the checkpoint's own
    if config is None:
        config = to_transformers_config(model.config)
    elif isinstance(config, str | os.PathLike):
        config = AutoConfig.from_pretrained(config, trust_remote_code=False)
    if not isinstance(config, SQATConfig):
        raise ConfigError(f"config is of type {type(config).__name__}, but must be an SQATConfig for such a checkpoint")
    if expected_shapes(to_model_config(config)) != {key: tensor.shape for key, tensor in tensors.items()}:
        raise ConfigError(f"config does not fit the tensors of {name}")
    return None, {**options, "config": config, "state_dict": prefixed(tensors)}


def _load_rxnn(name: str | Path, **options: Any) -> Decoder | None:
    """The model of a checkpoint in RxNN's layout, a folder or a repository such as "ReactiveAI/SQAT-mm"; `None` if it
    is in another one, or not there.
    """
    options = {key: options[key] for key in _FOR_THE_HUB if options.get(key) is not None}
    folder = Path(name)
    try:
        usable_token(options.get("token"))
        path = folder / CONFIG_FILE if folder.is_dir() else hf_hub_download(str(name), CONFIG_FILE, **options)
        values = read_json(Path(path))
    except FAILURES:  # transformers' own from_pretrained says what is wrong
        return None
    if not is_rxnn_config(values):
        return None
    if not folder.is_dir():
        folder = download(str(name), [CONFIG_FILE, WEIGHTS_FILE], **options)
    return load_model(folder, dtype=None)


def save(
    model: PreTrainedModel,
    plain: Callable[..., Any],
    folder: str | Path,
    *args: Any,
    known: Known | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **options: Any,
) -> Any:
    """`save_pretrained`: `plain`, which is transformers' own, then the modelling code and the model card."""
    if not isinstance(known, Known | None):
        raise ConfigError(f"known is of type {type(known).__name__}, but must be a sqat.model_card.Known")
    upload = {key: options.pop(key) for key in _FOR_UPLOADS if push_to_hub and key in options}
    plain(folder, *args, **options)
    if not options.get("is_main_process", args[0] if args else True):
        return None
    _write_code(model, Path(folder))
    if _has_card(model):
        _write_card(model, Path(folder), known or Known())
    if push_to_hub:
        return model.push_to_hub(repo_id or Path(folder).name, known=known, **upload)
    return None


def push(
    model: PreTrainedModel,
    plain: Callable[..., Any],
    repo_id: str,
    *,
    known: Known | None = None,
    tags: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "50GB",
    **options: Any,
) -> Any:
    """`push_to_hub` with a model card in place of the blank one that `plain`, which is transformers' own, would upload.
    A card on the Hub that somebody wrote or changed stays; `known` and `tags` change its metadata.
    """
    if not _has_card(model):
        options |= {"private": private, "token": token, "revision": revision, "max_shard_size": max_shard_size}
        return plain(repo_id, tags=list(tags), **options)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    options["commit_message"] = options.get("commit_message") or "Upload model"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, CARD_FILE)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if (there := read_text(repo_id, CARD_FILE, branch=revision, token=token)) is not None:
            path.write_text(there, encoding="utf-8")
        _write_card(model, Path(folder), known or Known(), repo_id)
        if tags:
            card = read_card(path.read_text(encoding="utf-8"))
            card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or ()), *tags]))
            path.write_text(str(card), encoding="utf-8")
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, **options)


def write_transformers(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write weights, configuration, modelling code, generation settings and tokenizer into an existing folder, which
    transformers then loads without this package; returns the architecture's name.
    """
    converted = from_decoder(model)
    converted.config.auto_map = dict(AUTO_MAP)
    converted.save_pretrained(folder)
    write_tokenizer(tokenizer, folder)
    return "SQAT, with its modelling code"


def _has_card(model: PreTrainedModel) -> bool:
    """Adapters have cards of their own, and a model without its head is not a language model."""
    return isinstance(model, SQATForCausalLM) and not getattr(model, "peft_config", None)


def _write_card(model: PreTrainedModel, folder: Path, known: Known, repo_id: str | None = None) -> None:
    """Write README.md; if somebody wrote or changed the one that is there, change its metadata alone."""
    path = folder / CARD_FILE
    cards = [path.read_text(encoding="utf-8")] if path.is_file() else []
    form, tokenizer = "transformers" if _carries_code(model) else "sqat", (folder / TOKENIZER_FILE).is_file()
    config = to_model_config(model.config)
    new = partial(model_card, config, form, known=known, repo_id=repo_id, tokenizer=tokenizer)
    path.write_text(kept_or_new(cards, known, new), encoding="utf-8")


def _carries_code(model: PreTrainedModel) -> bool:
    """Whether the configuration's `auto_map` names this package's code, there or on the Hub (`owner/name--…`)."""
    named = getattr(model.config, "auto_map", None) or {}
    return bool(named) and all(AUTO_MAP.get(key) == str(name).rpartition("--")[2] for key, name in named.items())


def _write_code(model: PreTrainedModel, folder: Path) -> None:
    """Copy the modelling code beside a model whose configuration names it: it then loads without this package."""
    if not _carries_code(model) or not (folder / CONFIG_FILE).is_file():  # adapters have no configuration
        return
    if model.config.auto_map != AUTO_MAP:
        model.config.auto_map = dict(AUTO_MAP)
        model.config.save_pretrained(folder)
    for module in (configuration_sqat, modeling_sqat):
        shutil.copy(str(module.__file__), folder)
