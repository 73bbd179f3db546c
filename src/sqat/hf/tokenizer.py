"""This package's tokenizers for `transformers`."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import decoders, processors
from transformers import PreTrainedTokenizerFast

from sqat.data.tokenizer import BOS, SPECIAL_TOKENS, Tokenizer


def to_transformers(tokenizer: Tokenizer, *, with_end: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer for `transformers`; it decodes its own encodings exactly.

    Args:
        tokenizer: one of this package's.
        with_end: whether [EOS] follows an encoded text, as in training rows. Otherwise there is only [BOS] before it,
            which is right for a text to be continued.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.decoder = decoders.ByteLevel()
    puts_space_first = tokenizer.decode(tokenizer.encode("a"), continuation=True) == " a"
    if puts_space_first:
        backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])  # removes it
    if not with_end:
        bos = SPECIAL_TOKENS[BOS]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS)])
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # without token types, which `generate` would refuse
        **names,
    )


def write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write a tokenizer, if there is one, beside an export; it is for texts to be continued."""
    if tokenizer is not None:
        to_transformers(tokenizer, with_end=False).save_pretrained(folder)
