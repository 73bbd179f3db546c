"""The model card that `save_pretrained` and `push_to_hub` write."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedModel

from sqat.data.tokenizer import TOKENIZER_FILE
from sqat.errors import ConfigError
from sqat.hf.core import to_model_config
from sqat.hf.modeling_sqat import SQATForCausalLM
from sqat.model_card import CARD_FILE, model_card

logger = logging.getLogger(__name__)

_BLANK = "[More Information Needed]"  # in the cards that transformers writes


def write_card(model: PreTrainedModel, folder: Path, form: str) -> None:
    """Write README.md where a language model was saved, unless there is one that somebody has filled in.

    Adapters have cards of their own, and a model without its head is no language model.
    """
    path = folder / CARD_FILE
    is_whole = isinstance(model, SQATForCausalLM) and not getattr(model, "_hf_peft_config_loaded", False)
    if not is_whole or not path.parent.is_dir() or (path.is_file() and _BLANK not in path.read_text(encoding="utf-8")):
        return
    try:
        config = to_model_config(model.config)
    except ConfigError as error:  # what was saved is none the worse
        logger.warning("no model card: %s", error)
        return
    tokenizer = (path.parent / TOKENIZER_FILE).is_file()
    path.write_text(model_card(config, form, tokenizer=tokenizer), encoding="utf-8")
