"""Documents as a file of token ids: written once, read as a memory map.

A token file is a folder:

- `tokens.bin`: the ids of all documents, end to end, each [BOS] … [EOS];
- `offsets.bin`: where each document begins, and where the last one ends;
- `byte_lengths.bin`: how many bytes of UTF-8 the text of each document has;
- `meta.json`: their sizes, and the fingerprints of what they were made from;
- `checksums.sha256`: the checksums of all of them, compared whenever the token file is opened.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sqat.checksums import MANIFEST, check_files, read_checksums
from sqat.data.text import Source
from sqat.data.tokenizer import Tokenizer
from sqat.durable import writing
from sqat.errors import DataError
from sqat.folders import default_cache
from sqat.lock import locked
from sqat.store import write_folder
from sqat.untrusted import read_json

FORMAT_VERSION = 1
TOKENS, OFFSETS, BYTE_LENGTHS, META = "tokens.bin", "offsets.bin", "byte_lengths.bin", "meta.json"
FILES = {TOKENS, OFFSETS, BYTE_LENGTHS, META, MANIFEST}

BATCH_DOCUMENTS = 1024  # that are tokenized in parallel
BATCH_CHARACTERS = 1 << 22  # bounds the memory of a batch of long documents

logger = logging.getLogger(__name__)

Made = TypeVar("Made")
Progress = Callable[[int, int, int | None], None]  # documents, tokens, documents in all where that is known


@dataclass(frozen=True)
class TokenFile:
    """An open token file; `len()` is its number of documents. See `build_tokens` and `open_tokens`."""

    folder: Path
    tokens: np.ndarray
    """(num_tokens,) uint16, or uint32 if the vocabulary needs it; a memory map."""
    offsets: np.ndarray
    """(documents + 1,) int64: document i is tokens[offsets[i] : offsets[i + 1]]; a memory map."""
    byte_lengths: np.ndarray
    """(documents,) int64: UTF-8 bytes of the text of each document; a memory map."""
    vocab_size: int
    """Entries of the tokenizer; all ids are below it."""
    document_bytes: int
    """UTF-8 bytes of all documents together."""

    def __len__(self) -> int:
        return len(self.byte_lengths)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """The token ids of one document, [BOS] and [EOS] included. Raises IndexError if there is no such document."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def digest(self) -> str:
        """Hex digits that differ if any token or the end of any document does; found once, as caches may be emptied."""
        sums = {} if self.folder == Path() else read_checksums(self.folder, DataError)
        if TOKENS not in sums:  # in memory
            return hashlib.sha256(self.tokens.tobytes() + self.offsets.tobytes()).hexdigest()
        return hashlib.sha256(f"{sums[TOKENS]} {sums[OFFSETS]}".encode()).hexdigest()


def build_tokens(
    source: Source, tokenizer: Tokenizer, folder: str | Path, *, progress: Progress | None = None
) -> TokenFile:
    """Tokenize a source into `folder`, which appears complete or not at all; a token file that is there is replaced.

    Args:
        source: the documents.
        tokenizer: anything with `encode_documents`, `vocab_size` and `fingerprint`.
        folder: where the token file goes.
        progress: called after every batch with the documents and tokens so far, and the documents in all, which are
            counted for it first.

    Raises:
        DataError: the source has no documents or cannot be read, or `folder` holds anything but a token file.
        StorageError: the files cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= FILES):
        raise DataError(f"{folder}: not a token file, so it is not overwritten; choose another place")
    made_from = {"source": source.fingerprint(), "tokenizer": tokenizer.fingerprint()}
    with write_folder(folder) as temporary:
        meta = _write_arrays(source, tokenizer, temporary, progress)
        (temporary / META).write_text(json.dumps(meta | made_from, indent=2), encoding="utf-8")
    return open_tokens(folder)


def open_tokens(folder: str | Path) -> TokenFile:
    """Open a token file. Raises DataError if one of its files is missing or damaged."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is not a complete token file: it has no {MANIFEST}")
    check_files(folder, error=DataError)
    meta = read_json(folder / META)
    if meta["format"] != FORMAT_VERSION:
        raise DataError(f"{folder / META}: format {meta['format']}; this version of sqat reads {FORMAT_VERSION}")
    documents, integers = meta["documents"], np.dtype(np.int64)
    tokens = np.memmap(folder / TOKENS, _dtype(meta["vocab_size"]), "r", shape=(meta["tokens"],))
    offsets = np.memmap(folder / OFFSETS, integers, "r", shape=(documents + 1,))
    byte_lengths = np.memmap(folder / BYTE_LENGTHS, integers, "r", shape=(documents,))
    return TokenFile(folder, tokens, offsets, byte_lengths, meta["vocab_size"], meta["document_bytes"])


def cached_tokens(
    source: Source, tokenizer: Tokenizer, cache_dir: str | Path | None = None, *, progress: Progress | None = None
) -> TokenFile:
    """The token file of this source and tokenizer: opened if the cache has it, otherwise built.

    A damaged one is built again, with a warning. Files are kept in the folder `tokens` of `cache_dir`, by default
    `default_cache()`.

    Raises:
        DataError, StorageError: as `build_tokens`.
    """
    identity = json.dumps([FORMAT_VERSION, source.fingerprint(), tokenizer.fingerprint()])
    folder = (
        Path(cache_dir or default_cache()).expanduser() / "tokens" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    )
    return cached(folder, open_tokens, lambda: build_tokens(source, tokenizer, folder, progress=progress))


def cached(folder: Path, load: Callable[[Path], Made], make: Callable[[], Made]) -> Made:
    """What a folder of the cache holds. Where it is missing or, with a warning, damaged, one process at a time makes it
    and others wait. Raises StorageError, and what `make` raises.
    """

    def whole() -> Made | None:
        try:
            return load(folder) if folder.exists() else None
        except DataError as error:
            logger.warning("made again: %s", error)
            return None

    if (found := whole()) is not None:
        return found
    with writing(folder), ExitStack() as held:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder.with_name(f"{folder.name}.lock"), "it is being made", wait=True))
        found = whole()
        return make() if found is None else found


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def _write_arrays(source: Source, tokenizer: Tokenizer, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Write all but meta.json into `folder`; returns the sizes that meta.json records."""
    dtype = _dtype(tokenizer.vocab_size)
    offsets, lengths = array("q", [0]), array("q")
    total = None if progress is None else sum(1 for _ in source.documents())
    with open(folder / TOKENS, "wb") as tokens:
        for texts in _text_batches(source.documents()):
            ids = tokenizer.encode_documents(texts)
            tokens.write(np.fromiter(chain.from_iterable(ids), dtype, count=sum(map(len, ids))).tobytes())
            offsets.extend(accumulate(map(len, ids), initial=offsets.pop()))
            lengths.extend(len(text.encode()) for text in texts)
            if progress is not None:
                progress(len(lengths), offsets[-1], total)
    if not lengths:
        raise DataError(f"{source.name}: there are no documents in it")
    (folder / OFFSETS).write_bytes(offsets.tobytes())
    (folder / BYTE_LENGTHS).write_bytes(lengths.tobytes())
    return {
        "format": FORMAT_VERSION,
        "documents": len(lengths),
        "tokens": offsets[-1],
        "document_bytes": sum(lengths),
        "vocab_size": tokenizer.vocab_size,
    }


def _text_batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
