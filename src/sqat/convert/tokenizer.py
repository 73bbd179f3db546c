"""A checkpoint's own tokenizer, for token files and calibration text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from sqat.checksums import check_files
from sqat.convert.files import TOKENIZER_FILES, require_plain_tokenizer
from sqat.data.text import open_source, split_within
from sqat.errors import CheckpointError, ConfigError, DataError


class StockTokenizer:
    """The tokenizer of a stock checkpoint, with what token files (:mod:`sqat.data.tokens`) ask of one.

    A document begins with the beginning-of-sequence token if the tokenizer puts one there, and always ends with the
    end-of-sequence token, if there is one.

    Args:
        folder: the checkpoint.

    Raises:
        CheckpointError: it has no tokenizer that can be read.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        files = [path.name for pattern in TOKENIZER_FILES for path in folder.glob(pattern)]
        if not files:
            raise CheckpointError(f"{folder} has no tokenizer: no tokenizer.json, nor another file of one")
        check_files(folder, files)
        require_plain_tokenizer(folder)
        try:
            self.backend: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # whatever its many classes raise, and the tokenizers library's panics
            problem = str(error)[:500]
            raise CheckpointError(f"{folder} has a tokenizer that transformers cannot read: {problem}") from error

    @property
    def vocab_size(self) -> int:
        """Number of entries, added ones included."""
        return len(self.backend)

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included."""
        end = self.backend.eos_token_id
        encoded = self.backend(texts, add_special_tokens=True, verbose=False)["input_ids"]
        return [ids if end is None or (ids and ids[-1] == end) else [*ids, end] for ids in encoded]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens written out."""
        return str(self.backend.decode(ids))

    def fingerprint(self) -> str:
        """A SHA-256 that differs between tokenizers that may encode differently."""
        probe = self.encode_documents(["a b"])
        fast = getattr(self.backend, "backend_tokenizer", None)
        state = fast.to_str() if fast is not None else json.dumps(self.backend.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"stock/{probe}/{state}".encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self.backend.save_pretrained(folder)


def token_rows(
    specs: Sequence[str], tokenizer: StockTokenizer, length: int, vocab_size: int, *, tokens: int, split: str = "train"
) -> Tensor:
    """Put documents end to end and cut them into rows of `length` tokens: (rows, length) int64. What is left over is
    dropped; text too short for a row gives one shorter row.

    Args:
        specs: sources, each DATA or DATA:n for the first n documents; DATA as :func:`sqat.data.text.open_source` takes
            it.
        tokenizer: encodes the documents.
        length: tokens of a row.
        vocab_size: the model's.
        tokens: how many at most, in equal parts from the beginning of each source.
        split: of the data, where it has several.

    Raises:
        DataError: a source cannot be read, or has no text.
        ConfigError: n is 0, or the tokenizer gives a token that the model does not have.
    """
    ids: list[int] = []
    for spec in specs:
        part = chain.from_iterable(_documents(spec, tokenizer, vocab_size, split))
        ids += islice(part, max(tokens // len(specs), 2))
    rows = max(1, len(ids) // length)
    return torch.tensor(ids[: rows * length]).view(rows, -1)


def document_rows(
    spec: str, tokenizer: StockTokenizer, length: int, vocab_size: int, *, split: str = "validation"
) -> tuple[Tensor, Tensor]:
    """Rows of one document each, or of a part of one, as :func:`sqat.train.evaluate.evaluate` scores them: token ids,
    (rows, length) int64, filled up at the end, and where they are real, boolean. Arguments and errors as
    :func:`token_rows`.
    """
    documents = [*_documents(spec, tokenizer, vocab_size, split)]
    # A part begins with the last token of the one before, so that every next token is scored once.
    parts = [ids[i : i + length] for ids in documents for i in range(0, max(len(ids) - 1, 1), length - 1)]
    parts.sort(key=len)
    width = len(parts[-1])
    rows = torch.tensor([part + [0] * (width - len(part)) for part in parts])
    return rows, torch.arange(width) < torch.tensor([len(part) for part in parts]).unsqueeze(1)


def _documents(spec: str, tokenizer: StockTokenizer, vocab_size: int, split: str) -> Iterator[list[int]]:
    name, _, count = spec.rpartition(":")
    limit = int(count) if name and count.isascii() and count.isdecimal() and len(count) < 19 else None
    if limit == 0:
        raise ConfigError(f"{spec!r} asks for 0 documents, but must ask for 1 or more")
    plain = spec if limit is None or name == "stories" else name
    source = open_source(plain, split_within(plain, split), limit=limit)
    found = 0
    for text in source.documents():
        ids = tokenizer.encode_documents([text])[0]
        if (largest := max(ids, default=0)) >= vocab_size:
            raise ConfigError(f"the tokenizer gives token {largest}, but the model's vocab_size is {vocab_size}")
        found += len(ids)
        yield ids
    if found < 2:
        raise DataError(f"{source.name} has {found} tokens, but must have at least 2")
