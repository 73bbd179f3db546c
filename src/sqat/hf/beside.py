"""What `save_pretrained` and `push_to_hub` put beside weights: the modelling code and the model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from sqat.hf import configuration_sqat, modeling_sqat
from sqat.hf.card import write_card

AUTO_MAP = {
    "AutoConfig": "configuration_sqat.SQATConfig",
    "AutoModel": "modeling_sqat.SQATModel",
    "AutoModelForCausalLM": "modeling_sqat.SQATForCausalLM",
}


def complete(model: PreTrainedModel, folder: str | Path) -> None:
    """Make a folder that transformers has saved a model into whole."""
    write_code(model, Path(folder))
    write_card(model, Path(folder), "native" if carries_code(model) else "sqat")


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
