"""Checkpoints that carry their modelling code: they load in `transformers` where this package is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqat.checkpoint.hub import model_card
from sqat.data.tokenizer import Tokenizer
from sqat.hf import configuration_sqat, modeling_sqat
from sqat.hf.core import from_decoder
from sqat.hf.tokenizer import to_transformers
from sqat.model import Decoder

AUTO_MAP = {
    "AutoConfig": "configuration_sqat.SQATConfig",
    "AutoModel": "modeling_sqat.SQATModel",
    "AutoModelForCausalLM": "modeling_sqat.SQATForCausalLM",
}


def write_native(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write weights, configuration, the two modelling files, generation settings, tokenizer and model card into an
    existing folder; returns the architecture's name.
    """
    converted = from_decoder(model)
    converted.config.auto_map = AUTO_MAP
    converted.save_pretrained(folder)
    for module in (configuration_sqat, modeling_sqat):
        shutil.copy(str(module.__file__), folder)
    if tokenizer is not None:
        to_transformers(tokenizer, with_end=False).save_pretrained(folder)
    card = model_card(
        model.config, loading_code(remote=True, tokenizer=tokenizer is not None), library="transformers", tags=()
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return "SQAT, with its modelling code"


def loading_code(*, remote: bool, tokenizer: bool) -> str:
    """How to load and use a checkpoint, for its card; it runs in the checkpoint's folder."""
    trust = ", trust_remote_code=True" if remote else ""
    lines = [
        "from transformers import AutoModelForCausalLM" + (", AutoTokenizer" if tokenizer else ""),
        "",
        'folder = "."  # or the repository\'s id',
        f"model = AutoModelForCausalLM.from_pretrained(folder{trust})",
    ]
    if tokenizer:
        lines += [
            f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})",
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))",
        ]
    return "\n".join(lines)
