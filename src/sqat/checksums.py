"""Checksums of a folder's files, so that damage is noticed when they are read.

`checksums.sha256` has one line per file, in the format of `sha256sum`, which can check it. Lines that begin with "#"
are comments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sqat.durable import replace_file
from sqat.errors import CheckpointError, SqatError

MANIFEST = "checksums.sha256"


def write_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """List the checksums of every file in the folder and below it; or those of `names`, beside what is listed."""
    if names is None:
        paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        sums, names = {}, [name for name in paths if name != MANIFEST]
    else:
        sums = read_checksums(folder)
    sums |= {name: _sha256(folder / name) for name in names}
    replace_file(folder / MANIFEST, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def renew_checksums(folder: Path, names: Iterable[str]) -> None:
    """If the folder has a list, enter the files `names`, which have been replaced, anew."""
    if (folder / MANIFEST).exists():
        write_checksums(folder, names)


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
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return {}
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    sums = {}
    for line in lines:
        if line and not line.startswith("#"):
            checksum, _, name = line.partition("  ")
            if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise error(f"{path} has the line {line[:200]!r}, but must have a SHA-256 and a file in its own folder")
            sums[name] = checksum
    return sums


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
