"""Folders, and files in shared folders, that are there whole or not at all.

A folder is written under a hidden name beside its destination, flushed to disk, and renamed into place. If there is
one already, it is `.NAME.previous` between the two renames. Every folder lists its files' checksums
(:mod:`sqat.checksums`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqat.checksums import renew_checksums, write_checksums
from sqat.durable import flush, temporary_beside, writing
from sqat.folders import removed_if_unused


@contextmanager
def write_folder(destination: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `destination` at the end, replacing what was there.

    After an error, `destination` is what it was before, and folders above it that were made are gone.

    Raises:
        StorageError: the system refuses, for example because the disk is full.
    """
    destination = Path(destination).expanduser().resolve()  # a link stays a link; its target is replaced
    with writing(destination), removed_if_unused(destination.parent, frozenset()):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(destination, folder=True) as temporary:
            yield temporary
            write_checksums(temporary)
            for path in temporary.rglob("*"):
                flush(path)
            flush(temporary)
            _replace(temporary, destination)
            flush(destination.parent)


@contextmanager
def write_files(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder whose files move into `folder` at the end, each replacing its namesake whole.

    Use this for an existing folder that holds other files too; they stay. If the folder has a list of checksums, the
    new files are entered in it.

    Raises:
        StorageError: the system refuses, for example because the disk is full.
    """
    folder = Path(folder)
    with writing(folder), temporary_beside(folder / "writing", folder=True) as temporary:
        yield temporary
        paths = sorted(temporary.iterdir())
        for path in paths:
            flush(path)
        for path in paths:
            os.replace(path, folder / path.name)
        renew_checksums(folder, [path.name for path in paths])
        flush(folder)


def _replace(temporary: Path, destination: Path) -> None:
    previous = destination.with_name(f".{destination.name}.previous")
    if destination.exists():
        shutil.rmtree(previous, ignore_errors=True)  # of a writer killed between the two renames
        destination.rename(previous)
    temporary.rename(destination)
    shutil.rmtree(previous, ignore_errors=True)
