"""Cards that are there already: whose text they are, and what of them stays when a model is written anew."""

from __future__ import annotations

import hashlib
import re

from huggingface_hub import ModelCard

from sqat.errors import ConfigError
from sqat.model_card.loading import FORMS, LIBRARIES, loading_section

BLANK = "[More Information Needed]"  # in the cards that transformers writes
_SEAL = re.compile(r"\n\n<!-- written by sqat, ([0-9a-f]{16}) -->\s*\Z")
_OF_THE_WEIGHTS = ("metrics", "model-index", "tags", "library_name", "pipeline_tag")  # metadata


def sealed(text: str) -> str:
    """A card's text with a line, not shown on a page, by which :func:`is_edited` tells whether somebody has changed it.
    Metadata are no part of it: they are edited on the Hub's pages.
    """
    return f"{text}\n\n<!-- written by sqat, {_digest(text)} -->"


def is_edited(card: str) -> bool:
    """Whether a card is, in part at least, somebody's own, and not what a program put there, to be renewed."""
    text = read_card(card).text
    if match := _SEAL.search(text):
        return _digest(text[: match.start()]) != match[1]
    return BLANK not in text and bool(text.strip())  # the Hub makes one of metadata alone


def with_metadata_of(old: str, card: str) -> str:
    """A new card, with those metadata of the one in its place that it lacks, such as a license set by hand."""
    before, result = read_card(old), read_card(card)
    own = result.data.to_dict()
    for name, value in before.data.to_dict().items():
        if name not in own and name not in _OF_THE_WEIGHTS:
            result.data[name] = value
    return str(result)


def for_form(card: str, form: str, repo_id: str | None, *, tokenizer: bool) -> str:
    """A card whose loading code, if it is what is written for another form, is that of this one; all else stays."""
    right = loading_section(form, repo_id, tokenizer=tokenizer)
    for other in FORMS:
        for place in {repo_id, None}:
            for there in (True, False):
                wrong = loading_section(other, place, tokenizer=there)
                if other != form and wrong in card:
                    result = read_card(card.replace(wrong, right))
                    result.data["library_name"] = LIBRARIES.get(form, "sqat")
                    return str(result)
    return card


def read_card(card: str) -> ModelCard:
    """Raises a ConfigError where its metadata are not valid YAML."""
    try:
        return ModelCard(card)
    except Exception as error:  # whatever its YAML is
        raise ConfigError(f"README.md has metadata that cannot be read: {error}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
