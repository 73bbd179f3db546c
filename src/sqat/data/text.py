"""Sources of text: one string names where documents come from, and every source streams them the same way.

Below `open_source` come its three kinds of source: built-in stories, local files and the Hugging Face Hub. `files`
reads a single file.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from sqat.data import files
from sqat.errors import ConfigError, DataError
from sqat.untrusted import named, shown

DEFAULT_STORIES = {"train": 100_000, "validation": 1_000}
HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<subset>[\w.-]+))?")
WILDCARDS = re.compile(r"[*?[]")

# Which split a name means, as in `datasets`: a keyword between separators. In another case ("Valid.txt") a space does
# not separate, so that "Training for a marathon.txt" is a book.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORDS = "|".join(SPLIT_WORDS)
_NAMED = (
    re.compile(rf"(?:^|[-._ 0-9])({_WORDS})(?=[-._ 0-9]|$)"),
    re.compile(rf"(?:^|[-._0-9])({_WORDS})(?=[-._0-9]|$)", re.IGNORECASE),
)
SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")

logger = logging.getLogger(__name__)


class NoSplitError(DataError):
    """A source has no such split."""


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
            - an existing folder, or a pattern such as "data/*.jsonl": files named for their split (see
              :func:`find_shards`);
            - an existing .parquet file, or .jsonl or .txt, also with .gz or .zst after it: it is the split "train";
            - "name", "owner/name" or "owner/name:subset": a data set of the Hugging Face Hub, loaded at once (needs the
              extra `hub-data`).
        split: which split to read.
        field: the column or key that holds the text.
        limit: read at most this many documents.
        seed: for the story generator.
        encoding_errors: "strict" (invalid UTF-8 is a DataError) or "replace" (it becomes U+FFFD).

    Raises:
        ConfigError: an unusable argument.
        DataError: `spec` names nothing readable, or lacks the split (a NoSplitError).
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be a number of documents, 1 or more, or None for all")
    if encoding_errors not in ("strict", "replace"):
        raise ConfigError(f'encoding_errors is {encoding_errors!r}; it must be "strict" or "replace"')
    if spec == "stories" or spec.startswith("stories:"):
        return _open_stories(limit, spec, split, seed)
    path = _local_path(spec)
    if path is not None and (path.is_dir() or not path.exists()):
        return _open_files(limit, f"{spec} ({split})", find_shards(path, split), field, encoding_errors)
    if path is not None:
        if not path.is_file():
            raise DataError(f"{path}: not a regular file")
        if files.text_format(path) is None:
            raise DataError(
                f"{path}: the name must end in .parquet, or in .jsonl or .txt, also with .gz or .zst after it"
            )
        if split != "train":
            raise NoSplitError(f"{path}: a single file is the split 'train' and has no split {split!r}")
        return _open_files(limit, str(path), (path,), field, encoding_errors)
    if spec.startswith(("./", "../", "/", "~")) or spec.count("/") > 1 or files.text_format(Path(spec)):
        raise DataError(f"{spec}: no such file or folder")
    return _open_hub(limit, spec, split, field, encoding_errors)


def split_within(spec: str, split: str) -> str:
    """`split`, or "train" where `spec` names a single file, which has no other."""
    path = _local_path(spec)
    return "train" if path is not None and path.is_file() else split


def _local_path(spec: str) -> Path | None:
    """The file, folder or pattern that a spec names, `~` expanded; `None` for all else. Raises DataError."""
    try:
        path = Path(spec).expanduser()
        return path if spec and (path.exists() or WILDCARDS.search(spec)) else None
    except (OSError, ValueError, RuntimeError) as error:  # an impossible name, or the home of an unknown user
        raise DataError(f"{shown(spec)} names no file: {error}") from error


@dataclass(frozen=True)
class _Source:
    """The documents that `read` gives: blank ones are left out, and at most `limit` are read.

    `identity` gives JSON values that differ if the text may differ; names of cached token files depend on them.
    """

    name: str
    limit: int | None
    read: Callable[[], Iterator[str]]
    identity: Callable[[], list[object]]

    def documents(self) -> Iterator[str]:
        most = None if self.limit is None else min(self.limit, sys.maxsize)
        return islice((text for text in self.read() if text and not text.isspace()), most)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([*self.identity(), self.limit]).encode()).hexdigest()


def _open_stories(limit: int | None, spec: str, split: str, seed: int) -> Source:
    """The first stories of a split of the built-in generator."""
    from sqat.data.stories import GENERATOR_VERSION, story

    if split not in DEFAULT_STORIES:
        raise NoSplitError(f"stories has no split {split!r}; it has: {', '.join(DEFAULT_STORIES)}")
    written = spec.removeprefix("stories").removeprefix(":")
    if spec != "stories" and not re.fullmatch("0*[1-9][0-9]{0,17}", written):
        raise DataError(f'{shown(spec)}: write "stories" or "stories:COUNT" with a number of stories, 1 or more')
    count = int(written or DEFAULT_STORIES[split])
    return _Source(
        f"stories:{count} ({split})",
        limit,
        lambda: (story(index, seed=seed, split=split) for index in range(count)),
        lambda: ["stories", GENERATOR_VERSION, seed, split, count],
    )


def _open_files(limit: int | None, name: str, paths: Sequence[Path], field: str, encoding_errors: str) -> Source:
    """The documents of some files, in their order."""

    def identity() -> list[object]:
        stats = []
        for path in paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
            stats.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
        return ["files", stats, field, encoding_errors]

    return _Source(
        name,
        limit,
        lambda: (text for path in paths for text in files.read_file(path, field, encoding_errors)),
        identity,
    )


def _open_hub(limit: int | None, spec: str, split: str, field: str, encoding_errors: str) -> Source:
    """Load one split of a Hub data set; the first time, download it."""
    match = HUB_ID.fullmatch(spec)
    if match is None:
        raise DataError(f'{spec!r} is neither "stories", nor a file or folder, nor a Hub data set ("owner/name")')
    dataset_id, subset = match["id"], match["subset"]
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{dataset_id!r} is no file or folder, and reading the Hub needs: pip install datasets"
        ) from error
    try:
        dataset = datasets.load_dataset(dataset_id, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        kind = NoSplitError if "Unknown split" in str(error) else DataError
        raise kind(
            f"the Hub data set {dataset_id!r} (subset {subset!r}, split {split!r}) cannot be loaded: {error}. "
            'A local file or folder, or the built-in "stories", needs no network'
        ) from error
    name = f"{dataset_id}{f':{subset}' if subset else ''} ({split})"
    files.check_text_column(dataset.features.arrow_schema, field, name)

    def read() -> Iterator[str]:
        row = 0
        for table in dataset.select_columns([field]).with_format("arrow").iter(files.ROWS_AT_A_TIME):
            yield from files.column_texts(table.column(0), encoding_errors, name, row)
            row += len(table)

    # `datasets` names the folder of a data set for its revision, or for the files it was made from.
    sources = [str(Path(file["filename"]).resolve()) for file in dataset.cache_files]
    return _Source(name, limit, read, lambda: ["hub", name, field, encoding_errors, dataset.num_rows, sources])


def find_shards(place: Path, split: str) -> tuple[Path, ...]:
    """The files of one split, by name, in a folder and below it or among those that a pattern matches.

    They are sorted into splits as `datasets` does it. The first of these rules that any file obeys counts:

    1. `data/SPLIT-00000-of-00001.*`, as on the Hub;
    2. a folder's name has a keyword of a split between separators: `valid/a.txt`, `en_val/a.txt`;
    3. the file's name has one: `stories-valid.txt`, `wiki.test.txt`, `train-00000-of-00001.parquet`;
    4. all are "train".

    What became of the files is logged; those that belong to no split are named in a warning. Hidden ones are ignored.

    Raises:
        NoSplitError: no file of this split; the message names the splits there are.
        DataError: no text files, a file that is named for two splits, or a split in several formats, which may hold the
            same documents.
    """
    root, paths = _files_at(place)
    found = [path for path in paths if files.text_format(path) and path.is_file()]
    if not found:
        raise DataError(f"{place}: no {', '.join(files.FORMATS)} files {'in it' if place.is_dir() else 'match it'}")
    named_for = _sort_into_splits(root, found)
    splits: dict[str, list[Path]] = {}
    for path, names in named_for.items():
        if len(names) > 1:
            raise DataError(f"{path} is named for {' and '.join(sorted(names))}: give it a name with one of them")
        for name in names:
            splits.setdefault(name, []).append(path)
    split = SPLIT_WORDS.get(split, split)
    if split not in splits:
        raise NoSplitError(f"{place}: no split {split!r}; it has: {', '.join(sorted(splits))}")
    shards = splits[split]
    if len(formats := sorted({str(files.text_format(path)) for path in shards})) > 1:
        raise DataError(
            f"{place}: the split {split!r} comes as {', '.join(formats)} ({_listed(root, shards)}), which may hold the "
            f"same documents: name one of them, as in {root / ('*' + formats[0])}"
        )
    left_out = [path for path in paths if not named_for.get(path) and not _is_about(path)]
    if left_out and split == "train":
        logger.warning("%s: left out, as they belong to no split or are no text: %s", place, _listed(root, left_out))
    logger.info("%s: the split %r is %s", place, split, _listed(root, shards))
    return tuple(shards)


def _files_at(place: Path) -> tuple[Path, list[Path]]:
    """A folder and all in and below it that is no folder, links to nothing, too; or the deepest folder that a pattern
    names, and what it matches.
    """
    if place.is_dir():
        root, paths = place, (Path(folder, name) for folder, _, names in _walk(place) for name in names)
    else:
        root = next(folder for folder in place.parents if not WILDCARDS.search(str(folder)))
        paths = (Path(path) for path in glob.glob(str(place), recursive=True))
    visible = (path for path in paths if not any(part[:1] == "." for part in path.relative_to(root).parts))
    return root, sorted(path for path in visible if not path.is_dir())


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through linked folders, too, each real folder once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if os.path.realpath(Path(folder, name)) not in seen]
        seen.update(os.path.realpath(Path(folder, name)) for name in folders)
        yield folder, folders, names


def _sort_into_splits(root: Path, paths: Sequence[Path]) -> dict[Path, set[str]]:
    """The splits that each file is named for, by the first rule of :func:`find_shards` that says anything."""
    by_shard = {path: _shard_of(path) if path.parent == root / "data" else set() for path in paths}
    by_folder = {path: _named_for(path.relative_to(root).parts[:-1]) for path in paths}
    by_name = {path: _shard_of(path) or _named_for([path.name]) for path in paths}
    everything = {path: {"train"} for path in paths}
    return next(rule for rule in (by_shard, by_folder, by_name, everything) if any(rule.values()))


def _shard_of(path: Path) -> set[str]:
    match = SHARD.match(path.name)
    return {SPLIT_WORDS.get(match["split"], match["split"])} if match else set()


def _named_for(names: Sequence[str]) -> set[str]:
    words = (word for name in names for pattern in _NAMED for word in pattern.findall(name))
    return {SPLIT_WORDS[word.lower()] for word in words}


def _is_about(path: Path) -> bool:
    """Whether a file tells about the others, as README and LICENSE do."""
    return path.stem.upper() in ("README", "LICENSE", "DATASET_INFO", "DATASET_INFOS", "CONFIG", "CITATION")


def _listed(root: Path, paths: Sequence[Path]) -> str:
    return named(path.relative_to(root) for path in paths)
