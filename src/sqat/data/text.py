"""Sources of text: one string names where documents come from, and every source streams them the same way.

Below `open_source` come its three kinds of source: built-in stories, local files and the Hugging Face Hub. `files`
reads a single file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sqat.data.files import (
    COMPRESSIONS,
    FORMATS,
    ROWS_AT_A_TIME,
    check_text_column,
    column_texts,
    read_file,
    text_format,
)
from sqat.errors import ConfigError, DataError
from sqat.untrusted import shown

if TYPE_CHECKING:
    from datasets import Dataset

DEFAULT_STORIES = {"train": 100_000, "validation": 1_000}
HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<subset>[\w.-]+))?")

SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Source(Protocol):
    """Documents in a fixed order, which can be streamed as often as needed."""

    @property
    def name(self) -> str:
        """What messages call this source."""

    def documents(self) -> Iterator[str]:
        """The documents that are not blank, one at a time. Raises DataError for what cannot be read."""

    def fingerprint(self) -> str:
        """Hex digits that change if the documents may have changed."""


def open_source(
    spec: str,
    split: str = "train",
    *,
    field: str = "text",
    limit: int | None = None,
    seed: int = 0,
    encoding_errors: str = "strict",
) -> Source:
    """The source that `spec` names.

    Args:
        spec: tried in this order:

            - "stories" or "stories:COUNT": the built-in generator (by default 100,000 training or 1,000 validation
              stories); write "./stories" for a folder of that name;
            - an existing folder in the Hub's layout: files named for their split, in it or in its `data` folder (see
              :func:`find_shards`);
            - an existing .parquet, .jsonl or .txt file, also with .gz or .zst after it: it is the split "train";
            - "name", "owner/name" or "owner/name:subset": a data set of the Hugging Face Hub, loaded at once (needs the
              extra `hub-data`).
        split: which split to read.
        field: the column or key that holds the text.
        limit: read at most this many documents.
        seed: for the story generator.
        encoding_errors: "strict" (invalid UTF-8 is a DataError) or "replace" (it becomes U+FFFD).

    Raises:
        ConfigError: an unusable argument.
        DataError: `spec` names nothing readable, or lacks the split.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be a number of documents, 1 or more, or None for all")
    if encoding_errors not in ("strict", "replace"):
        raise ConfigError(f'encoding_errors is {encoding_errors!r}; it must be "strict" or "replace"')
    if spec == "stories" or spec.startswith("stories:"):
        return StoriesSource(limit, _story_count(spec, split), split, seed)
    try:
        path = Path(spec).expanduser()
        exists = bool(spec) and path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # an impossible name, or the home of an unknown user
        raise DataError(f"{shown(spec)} names no file: {error}") from error
    if exists and path.is_dir():
        return FileSource(limit, f"{path} ({split})", find_shards(path, split), field, encoding_errors)
    if exists:
        if text_format(path) is None:
            raise DataError(
                f"{path}: the name must end in {', '.join(FORMATS)}, also with {' or '.join(COMPRESSIONS)} after it"
            )
        if split != "train":
            raise DataError(f"{path}: a single file is the split 'train' and has no split {split!r}")
        return FileSource(limit, str(path), (path,), field, encoding_errors)
    if spec.startswith(("./", "../", "/", "~")) or spec.count("/") > 1 or text_format(path):
        raise DataError(f"{spec}: no such file or folder")
    return _open_hub(limit, spec, split, field, encoding_errors)


def _story_count(spec: str, split: str) -> int:
    if split not in DEFAULT_STORIES:
        raise DataError(f"stories has no split {split!r}; it has: {', '.join(DEFAULT_STORIES)}")
    if spec == "stories":
        return DEFAULT_STORIES[split]
    count = spec.removeprefix("stories:")
    if not (count.isascii() and count.isdecimal() and len(count) < 19 and int(count) >= 1):
        raise DataError(f'{shown(spec)}: write "stories" or "stories:COUNT" with a number of stories, 1 or more')
    return int(count)


@dataclass(frozen=True)
class _BaseSource(ABC):
    """What the sources of this module share: blank documents are left out, and at most `limit` are read."""

    limit: int | None

    @abstractmethod
    def read(self) -> Iterator[str]:
        """All documents, blank ones included."""

    @abstractmethod
    def identity(self) -> list[object]:
        """JSON values that differ if the text may differ. They are part of the names of cached token files."""

    def documents(self) -> Iterator[str]:
        most = None if self.limit is None else min(self.limit, sys.maxsize)
        return islice((text for text in self.read() if text and not text.isspace()), most)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([*self.identity(), self.limit]).encode()).hexdigest()


@dataclass(frozen=True)
class StoriesSource(_BaseSource):
    """The first `count` stories of a split of the built-in generator."""

    count: int
    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"stories:{self.count} ({self.split})"

    def read(self) -> Iterator[str]:
        from sqat.data.stories import story

        return (story(index, seed=self.seed, split=self.split) for index in range(self.count))

    def identity(self) -> list[object]:
        from sqat.data.stories import GENERATOR_VERSION

        return ["stories", GENERATOR_VERSION, self.seed, self.split, self.count]


@dataclass(frozen=True)
class FileSource(_BaseSource):
    """The documents of some files, in their order. `field` is the column or key of .parquet and .jsonl files."""

    name: str
    paths: tuple[Path, ...]
    field: str
    encoding_errors: str

    def read(self) -> Iterator[str]:
        for path in self.paths:
            yield from read_file(path, self.field, self.encoding_errors)

    def identity(self) -> list[object]:
        files = []
        for path in self.paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
            files.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
        return ["files", files, self.field, self.encoding_errors]


@dataclass(frozen=True)
class HubSource(_BaseSource):
    """One split of a data set of the Hugging Face Hub."""

    name: str
    dataset: Dataset
    field: str
    encoding_errors: str

    def read(self) -> Iterator[str]:
        row = 0
        for table in self.dataset.select_columns([self.field]).with_format("arrow").iter(ROWS_AT_A_TIME):
            yield from column_texts(table.column(0), self.encoding_errors, self.name, row)
            row += len(table)

    def identity(self) -> list[object]:
        # `datasets` names the folder of a data set for its revision, or for the files it was made from.
        files = [str(Path(file["filename"]).resolve()) for file in self.dataset.cache_files]
        return ["hub", self.name, self.field, self.encoding_errors, self.dataset.num_rows, files]


def _open_hub(limit: int | None, spec: str, split: str, field: str, encoding_errors: str) -> HubSource:
    """Load one split of a Hub data set; the first time, download it."""
    match = HUB_ID.fullmatch(spec)
    if match is None:
        raise DataError(
            f'{spec!r} is neither "stories", nor an existing file or folder, nor a Hub data set ("owner/name")'
        )
    dataset_id, subset = match["id"], match["subset"]
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{dataset_id!r} is not an existing file or folder, and reading the Hub needs: pip install datasets"
        ) from error
    try:
        dataset = datasets.load_dataset(dataset_id, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the Hub data set {dataset_id!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}. "
            'A local file or folder, or the built-in "stories", needs no network'
        ) from error
    name = f"{dataset_id}{f':{subset}' if subset else ''} ({split})"
    check_text_column(dataset.features.arrow_schema, field, name)
    return HubSource(limit, name, dataset, field, encoding_errors)


def find_shards(folder: Path, split: str) -> tuple[Path, ...]:
    """The files of one split, by name, as the Hub lays them out: in `folder/data` if that holds any, else in `folder`.

    A file belongs to the split it is named for (train-00000-of-00001.parquet, validation.jsonl, val_2.txt.gz). If no
    file is named for a split, all are "train". If a split comes in several formats, which usually hold the same
    documents, only one is read: Parquet before JSON lines before text.

    Raises:
        DataError: no text files in the folder, or none of this split; the message names those found.
    """
    found: list[Path] = []
    for place in (folder / "data", folder):
        if place.is_dir() and not found:
            found = sorted(path for path in place.iterdir() if path.is_file() and text_format(path))
    if not found:
        raise DataError(f"{folder}: no {', '.join(FORMATS)} files in it or in its folder 'data'")
    splits: dict[str, list[Path]] = {}
    for path in found:
        if (named_for := _split_of(path)) is not None:
            splits.setdefault(named_for, []).append(path)
    splits = splits or {"train": found}
    shards = splits.get(SPLIT_WORDS.get(split, split))
    if shards is None:
        raise DataError(f"{folder}: no split {split!r}; it has: {', '.join(sorted(splits))}")
    best = next(name for name in FORMATS if any(text_format(path) == name for path in shards))
    return tuple(path for path in shards if text_format(path) == best)


def _split_of(path: Path) -> str | None:
    stem = path.name.partition(".")[0].lower()
    if shard := SHARD.fullmatch(stem):
        return SPLIT_WORDS.get(shard["split"], shard["split"])
    word = re.match(r"[a-z]*", stem)
    return SPLIT_WORDS.get(word[0]) if word else None
