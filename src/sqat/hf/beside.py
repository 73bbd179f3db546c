"""What `save_pretrained` and `push_to_hub` put beside weights: the modelling code and the model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from sqat.errors import ConfigError
from sqat.hf import configuration_sqat, modeling_sqat
from sqat.hf.card import write_card
from sqat.model_card import Known

AUTO_MAP = {
    "AutoConfig": "configuration_sqat.SQATConfig",
    "AutoModel": "modeling_sqat.SQATModel",
    "AutoModelForCausalLM": "modeling_sqat.SQATForCausalLM",
}


def complete(
    model: PreTrainedModel, folder: str | Path, *, known: Known | None = None, repo_id: str | None = None
) -> None:
    """Make a folder that transformers has saved a model into whole; `repo_id` is where it goes, if it does.

    Raises:
        ConfigError: `known` is something else; see also :func:`write_card`.
    """
    if not isinstance(known, Known | None):
        raise ConfigError(f"known is of type {type(known).__name__}, but must be a sqat.model_card.Known")
    write_code(model, Path(folder))
    form = "native" if carries_code(model) else "sqat"
    write_card(model, Path(folder), form, known=known or Known(), repo_id=repo_id)


def carries_code(model: PreTrainedModel) -> bool:
    """Whether a model's configuration names this package's modelling code, there or on the Hub (`owner/name--…`)."""
    named = getattr(model.config, "auto_map", None) or {}
    return bool(named) and all(AUTO_MAP.get(key) == str(name).rpartition("--")[2] for key, name in named.items())


def write_code(model: PreTrainedModel, folder: Path) -> None:
    """Copy the modelling code to where a model was saved whose configuration names it: it is then as free of this
    package as what it was loaded from.
    """
    if not carries_code(model) or not (folder / CONFIG_NAME).is_file():
        return  # adapters have no configuration
    if model.config.auto_map != AUTO_MAP:
        model.config.auto_map = dict(AUTO_MAP)
        model.config.save_pretrained(folder)
    for module in (configuration_sqat, modeling_sqat):
        shutil.copy(str(module.__file__), folder)
