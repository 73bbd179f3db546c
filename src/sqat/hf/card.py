"""The model card that `save_pretrained` and `push_to_hub` write."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from sqat.data.tokenizer import TOKENIZER_FILE
from sqat.errors import ConfigError
from sqat.hf.core import to_model_config
from sqat.hf.modeling_sqat import SQATForCausalLM
from sqat.model_card import CARD_FILE, Known, model_card, with_known
from sqat.model_card.upkeep import BLANK

logger = logging.getLogger(__name__)


def write_card(
    model: PreTrainedModel, folder: Path, form: str, *, known: Known | None = None, repo_id: str | None = None
) -> None:
    """Write README.md where a language model was saved; one that somebody has filled in is left as it is, but for the
    metadata that `known` changes.

    Adapters have cards of their own, and a model without its head is no language model.

    Raises:
        ConfigError: `known` is to change a card whose metadata cannot be read.
    """
    path = folder / CARD_FILE
    known = known or Known()
    is_whole = isinstance(model, SQATForCausalLM) and not getattr(model, "_hf_peft_config_loaded", False)
    if not is_whole or not folder.is_dir():
        return
    there = path.read_text(encoding="utf-8") if path.is_file() else None
    if there is not None and BLANK not in there:
        if (changed := with_known(there, known)) != there:
            path.write_text(changed, encoding="utf-8")
        return
    try:
        config = to_model_config(model.config)
    except ConfigError as error:  # what was saved is none the worse
        logger.warning("no model card: %s", error)
        return
    tokenizer = (folder / TOKENIZER_FILE).is_file()
    card = model_card(config, form, known=known, repo_id=repo_id, tokenizer=tokenizer)
    path.write_text(card if there is None else _with_tags_of(there, card), encoding="utf-8")


def _with_tags_of(blank: str, card: str) -> str:
    """The card, and those tags that transformers has put into its own (`push_to_hub(tags=…)`)."""
    result = ModelCard(card)
    tags = [tag for one in (result, ModelCard(blank)) for tag in one.data.get("tags") or ()]
    result.data["tags"] = list(dict.fromkeys(tags))
    return str(result)
