"""Checksums of a folder's files, so that damage is noticed when they are read.

`checksums.sha256` has one line per file, in the format of `sha256sum`, which can check it. Its first line, a comment
to `sha256sum`, is the checksum of the other lines, so that a damaged list is not mistaken for damaged files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from sqat.durable import replace_file
from sqat.errors import CheckpointError, SqatError

MANIFEST = "checksums.sha256"
_HEAD = "# SHA-256 of the lines below: "
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """List the checksums of `names`, or of every file in the folder and below it."""
    if names is None:
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = [name for path in paths if (name := path.relative_to(folder).as_posix()) != MANIFEST]
    _write(folder, {name: _sha256(folder / name) for name in names})


def add_checksums(folder: Path, names: Iterable[str]) -> None:
    """Add `names` to the folder's list, or make one; the entries of other files stay."""
    _write(folder, {**read_checksums(folder), **{name: _sha256(folder / name) for name in names}})


def renew_checksums(folder: Path, names: Iterable[str]) -> None:
    """If the folder has a list, enter the files `names`, which have been replaced, anew."""
    if (folder / MANIFEST).exists():
        add_checksums(folder, names)


def check_files(folder: Path, names: Iterable[str] | None = None, *, error: type[SqatError] = CheckpointError) -> None:
    """Compare files with the folder's list of checksums: `names`, or all that it lists.

    Files that the list does not have, and folders without a list (as other programs write them), pass unchecked.

    Raises:
        error: a file is missing, unreadable or changed, or the list itself is damaged; the message names it.
    """
    sums = read_checksums(folder, error)
    for name in sums if names is None else [name for name in names if name in sums]:
        path = folder / name
        try:
            if not path.is_file():
                raise error(f"{path} is missing, although {MANIFEST} lists it")
            found = _sha256(path)
        except OSError as reason:
            raise error(f"{path} cannot be read: {reason}") from reason
        if found != sums[name]:
            raise error(
                f"{path} is damaged or truncated: its SHA-256 is not the one in {MANIFEST}. Restore it; or, if it was "
                f"changed on purpose, delete {folder / MANIFEST}"
            )


def read_checksums(folder: Path, error: type[SqatError] = CheckpointError) -> dict[str, str]:
    """The checksums in a folder's list by file name; empty if there is no list. Raises `error` if it is damaged."""
    path = folder / MANIFEST
    try:
        head, _, lines = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    if head != (_HEAD + hashlib.sha256(lines).hexdigest()).encode():
        raise error(
            f"{path} is damaged: its first line is not the checksum of the others. Without this file the folder is "
            "read unchecked"
        )
    sums = {}
    for line in lines.decode(errors="replace").removesuffix("\n").split("\n") if lines else ():
        found = _LINE.fullmatch(line)
        if not found or PurePosixPath(found[2]).is_absolute() or ".." in PurePosixPath(found[2]).parts:
            raise error(f"{path} has the line {line[:200]!r}, but must have a SHA-256 and a file in its own folder")
        sums[found[2]] = found[1]
    return sums


def _write(folder: Path, sums: Mapping[str, str]) -> None:
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    replace_file(folder / MANIFEST, f"{_HEAD}{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
