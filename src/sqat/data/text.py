"""Sources of text: one string names where documents come from, and every source streams them the same way."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from sqat.config import MAX_INTEGER
from sqat.data.text_files import COMPRESSIONS, FORMATS, FileReader, find_shards, text_format
from sqat.data.text_hub import HubReader, open_hub
from sqat.errors import ConfigError, DataError
from sqat.untrusted import shown

DEFAULT_DATASET = "roneneldan/TinyStories"

DEFAULT_STORIES = {"train": 100_000, "validation": 1_000}
HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<subset>[\w.-]+))?")


class Source(Protocol):
    """Documents in a fixed order, read as a stream, as often as wanted."""

    @property
    def name(self) -> str:
        """What messages call this source."""

    def documents(self) -> Iterator[str]:
        """The documents that hold more than whitespace, one at a time. Raises DataError for what cannot be read."""

    def fingerprint(self) -> str:
        """Hex digits that change when the documents may have changed."""


class Reader(Protocol):
    """One kind of place that text comes from: what a source needs to know of it."""

    @property
    def name(self) -> str: ...

    def read(self) -> Iterator[str]:
        """All documents, blank ones included."""

    def identity(self) -> list[object]:
        """JSON values that differ when the text may differ."""


@dataclass(frozen=True)
class StoriesReader:
    """The first `count` stories of one split of the built-in generator."""

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
class ReadSource:
    """A reader as a source: blank documents left out, at most `limit` documents."""

    reader: Reader
    limit: int | None = None

    @property
    def name(self) -> str:
        return self.reader.name

    def documents(self) -> Iterator[str]:
        most = None if self.limit is None else min(self.limit, MAX_INTEGER)
        return islice((text for text in self.reader.read() if text and not text.isspace()), most)

    def fingerprint(self) -> str:
        identity = json.dumps([*self.reader.identity(), self.limit])
        return hashlib.sha256(identity.encode()).hexdigest()


def open_source(
    spec: str,
    split: str = "train",
    *,
    field: str = "text",
    limit: int | None = None,
    seed: int = 0,
    encoding_errors: str = "strict",
) -> Source:
    """The source that `spec` names. What `spec` may be, in the order in which it is tried:

    - "stories" or "stories:COUNT": the built-in generator (100,000 training or 1,000 validation stories by default);
      a folder of that name is reached as "./stories";
    - an existing folder in the Hub's layout: files named for their split, there or in its `data` folder
      (see `text_files.find_shards`);
    - an existing .parquet, .jsonl or .txt file, also with .gz or .zst after it: a single file is the split "train";
    - "name", "owner/name" or "owner/name:subset": a data set of the Hugging Face Hub, loaded at once (needs the extra
      `hub-data`).

    `field` is the column or key that holds the text, `limit` the largest number of documents, `seed` goes to the
    generator, and `encoding_errors` is "strict" (invalid UTF-8 is a DataError) or "replace" (it becomes U+FFFD).

    Raises ConfigError for an unusable argument and DataError for a spec that names nothing readable or lacks the split.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be a number of documents, 1 or more, or None for all")
    if encoding_errors not in ("strict", "replace"):
        raise ConfigError(f'encoding_errors is {encoding_errors!r}; it must be "strict" or "replace"')
    if spec == "stories" or spec.startswith("stories:"):
        return ReadSource(_stories(spec, split, seed), limit)
    try:
        path = Path(spec).expanduser()
        there = bool(spec) and path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name no file can have, or a home of nobody
        raise DataError(f"{shown(spec)} names no file: {error}") from error
    if there:
        return ReadSource(_files(path, split, field, encoding_errors), limit)
    if _looks_like_a_path(spec):
        raise DataError(f"{spec}: no such file or folder")
    return ReadSource(_hub(spec, split, field, encoding_errors), limit)


def _stories(spec: str, split: str, seed: int) -> StoriesReader:
    if split not in DEFAULT_STORIES:
        raise DataError(f"stories has no split {split!r}; it has: {', '.join(DEFAULT_STORIES)}")
    if spec == "stories":
        return StoriesReader(DEFAULT_STORIES[split], split, seed)
    count = spec.removeprefix("stories:")
    if not (count.isascii() and count.isdecimal() and len(count) < 19 and int(count) >= 1):
        raise DataError(f'{shown(spec)}: write "stories" or "stories:COUNT" with a number of stories, 1 or more')
    return StoriesReader(int(count), split, seed)


def _files(path: Path, split: str, field: str, encoding_errors: str) -> FileReader:
    if path.is_dir():
        return FileReader(f"{path} ({split})", find_shards(path, split), field, encoding_errors)
    if text_format(path) is None:
        raise DataError(
            f"{path}: the name must end in {', '.join(FORMATS)}, also with {' or '.join(COMPRESSIONS)} after it"
        )
    if split != "train":
        raise DataError(f"{path}: a single file is the split 'train' and has no split {split!r}")
    return FileReader(str(path), (path,), field, encoding_errors)


def _hub(spec: str, split: str, field: str, encoding_errors: str) -> HubReader:
    match = HUB_ID.fullmatch(spec)
    if match is None:
        raise DataError(
            f'{spec!r} is neither "stories", nor an existing file or folder, nor a Hub data set ("owner/name")'
        )
    return open_hub(match["id"], match["subset"], split, field, encoding_errors)


def _looks_like_a_path(spec: str) -> bool:
    return spec.startswith(("./", "../", "/", "~")) or spec.count("/") > 1 or text_format(Path(spec)) is not None
