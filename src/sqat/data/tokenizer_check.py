"""A `tokenizer.json` of unknown origin, held to its form before the `tokenizers` library builds anything of it.

The library is made for files of its own: numbers out of range and prefixes cut within a character end it in the middle
(a panic), a token with a huge id costs memory for all ids below, and a regular expression can take time exponential in
the text. What passes here is a byte-pair encoding with parts that the library is known to build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqat.data.regex_check import require_quick_regex
from sqat.untrusted import parse_json, read_text, shown

MAX_TOKENIZER_BYTES = 1 << 26
MAX_VOCABULARY = 1 << 22  # ids are below it
MAX_MERGES = 1 << 23
MAX_TOKEN = 1 << 12  # characters

_STEPS = ("normalizers", "pretokenizers", "processors", "decoders")
_PARTS = {
    "normalizer": {
        *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Prepend", "Replace"),
        "ByteLevel",
    },
    "pre_tokenizer": {
        *("Sequence", "ByteLevel", "Digits", "Split", "Whitespace", "WhitespaceSplit", "Punctuation", "Metaspace"),
        "BertPreTokenizer",
    },
    "post_processor": {"Sequence", "ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"},
    "decoder": {"Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "BPEDecoder"},
}


def read_tokenizer_file(path: Path) -> str:
    """The text of a tokenizer.json.

    Raises:
        OSError: cannot be read.
        ValueError: too large, not JSON in UTF-8, or not of the form that is read here; the message says where.
    """
    text = read_text(path, MAX_TOKENIZER_BYTES)
    check_tokenizer(parse_json(text))
    return text


def check_tokenizer(values: Any) -> None:
    """Raise a ValueError unless parsed JSON has the form of a byte-pair encoding's tokenizer.json."""
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError("it has no model")
    model = values["model"]
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "WordLevel"):
        raise ValueError(f"model.type is {shown(kind)}, but must be 'BPE'")
    _check_vocabulary(model.get("vocab"))
    if kind == "BPE":
        _check_merges(model)
    _check_added(values.get("added_tokens"))
    for name, kinds in _PARTS.items():
        _check_part(values.get(name), name, kinds)


def _check_vocabulary(vocabulary: Any) -> None:
    if not isinstance(vocabulary, dict):
        raise ValueError(f"model.vocab is {shown(vocabulary)}, but must give each token's id")
    for token, token_id in vocabulary.items():
        _require_id(token_id, f"model.vocab[{shown(token)}]")
        if len(token) > MAX_TOKEN:
            raise ValueError(f"model.vocab holds a token of {len(token):,} characters; at most {MAX_TOKEN:,} are read")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("model.vocab gives two tokens the same id")


def _require_id(token_id: Any, where: str) -> None:
    if type(token_id) is not int or not 0 <= token_id < MAX_VOCABULARY:
        raise ValueError(f"{where} is {shown(token_id)}, but must be a whole number from 0 to {MAX_VOCABULARY - 1:,}")


def _check_merges(model: dict[str, Any]) -> None:
    merges = model.get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise ValueError(f"model.merges must be a list of pairs, at most {MAX_MERGES:,}")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise ValueError(f"model.merges holds {shown(merge)}, but must hold pairs of tokens")
        if not all(token in model["vocab"] for token in (*pair, "".join(pair))):
            raise ValueError(f"model.merges holds {shown(merge)}, which model.vocab lacks, or what they merge to")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name) not in (None, ""):
            raise ValueError(f"model.{name} is {shown(model[name])}, but must be null: byte-level encodings have none")
    if model.get("dropout") not in (None, 0.0):
        raise ValueError(f"model.dropout is {shown(model['dropout'])}, but must be null: a text has one encoding")


def _check_added(added: Any) -> None:
    if added is None:
        return
    if not isinstance(added, list) or len(added) > MAX_VOCABULARY:
        raise ValueError("added_tokens must be a list")
    for number, token in enumerate(added):
        where = f"added_tokens[{number}]"
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError(f"{where} is {shown(token)}, but must be a token with its content")
        if not 0 < len(token["content"]) <= MAX_TOKEN:
            raise ValueError(
                f"{where}.content is {shown(token['content'])}, but must have 1 to {MAX_TOKEN:,} characters"
            )
        _require_id(token.get("id"), f"{where}.id")


def _check_part(part: Any, where: str, kinds: set[str]) -> None:
    """One step of the pipeline, or the steps of a sequence."""
    if part is None:
        return
    if not isinstance(part, dict) or not isinstance(part.get("type"), str) or part["type"] not in kinds:
        found = part.get("type") if isinstance(part, dict) else part
        raise ValueError(f"{where}.type is {shown(found)}, but must be one of {', '.join(sorted(kinds))}")
    if part["type"] == "Sequence":
        steps = next((part[name] for name in _STEPS if name in part), None)
        if not isinstance(steps, list) or len(steps) > 32:
            raise ValueError(f"{where} is a sequence without a list of steps, or of more than 32")
        for number, step in enumerate(steps):
            _check_part(step, f"{where}[{number}]", kinds)
    if part["type"] == "TemplateProcessing":
        _check_template(part, where)
    pattern = part.get("pattern")
    if isinstance(pattern, dict) and "Regex" in pattern:
        try:
            require_quick_regex(pattern["Regex"])
        except ValueError as error:
            raise ValueError(f"{where}.pattern: {error}") from error
    for name in ("start", "stop", "n"):
        if name in part and (type(part[name]) is not int or not 0 <= part[name] <= MAX_TOKEN):
            right = f"a whole number from 0 to {MAX_TOKEN:,}"
            raise ValueError(f"{where}.{name} is {shown(part[name])}, but must be {right}")
    for name in ("content", "prepend"):
        if isinstance(part.get(name), str) and len(part[name]) > MAX_TOKEN:
            raise ValueError(f"{where}.{name} has {len(part[name]):,} characters, but at most {MAX_TOKEN:,} are read")


def _check_template(part: dict[str, Any], where: str) -> None:
    """The library ends in the middle of a text where a template names a special token that it does not have."""
    known = part.get("special_tokens")
    for name in ("single", "pair"):
        steps = part.get(name)
        for step in steps if isinstance(steps, list) else []:
            token = step.get("SpecialToken") if isinstance(step, dict) else None
            special = token.get("id") if isinstance(token, dict) else None
            if isinstance(special, str) and not (isinstance(known, dict) and special in known):  # else it is refused
                raise ValueError(f"{where}.{name} names {shown(special)}, which its special_tokens lack")
