"""Folders, and files in shared folders, that are there whole or not at all.

A folder is written beside its destination, flushed to disk, and renamed into place. Where the destination exists, it is
moved aside first, to `.NAME.previous`; a crash between the two renames leaves that, and :func:`recover` puts it back.
Every folder gets a list of its files' checksums (:mod:`sqat.checksums`), by which damage is found later.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqat.checksums import MANIFEST, write_checksums

logger = logging.getLogger(__name__)


@contextmanager
def write_folder(destination: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it becomes `destination`, replacing what was there; on an error
    nothing changes.
    """
    destination = Path(destination).resolve()  # through a link, to what it stands for
    destination.parent.mkdir(parents=True, exist_ok=True)
    recover(destination)
    temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent))
    try:
        yield temporary
        write_checksums(temporary)
        temporary.chmod(0o777 & ~_umask())
        for path in temporary.rglob("*"):
            _flush(path)
        _flush(temporary)
        if destination.exists():
            destination.rename(_previous(destination))
        temporary.rename(destination)
        _flush(destination.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover(destination)


@contextmanager
def write_files(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success its files move into `folder`, which exists: each replaces its
    namesake whole, and others stay. Where the folder has a list of checksums, it lists these files from then on.

    For folders that are not this package's alone; a new one is better written by :func:`write_folder`.
    """
    folder = Path(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".writing.", suffix=".tmp", dir=folder))
    try:
        yield temporary
        paths = sorted(temporary.iterdir())
        for path in paths:
            _flush(path)
        listed = (folder / MANIFEST).exists()
        (folder / MANIFEST).unlink(missing_ok=True)  # first: what it says of these files ends here
        for path in paths:
            os.replace(path, folder / path.name)
        if listed:
            write_checksums(folder, [path.name for path in paths])
        _flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(destination: str | Path) -> None:
    """Put back the previous folder where a crash left only that, and clear the remains of one that was replaced."""
    destination = Path(destination).resolve()
    previous = _previous(destination)
    if not previous.exists():
        return
    if destination.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        logger.warning("%s was being replaced when its writer stopped; the previous one is put back", destination)
        previous.rename(destination)


def _previous(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.previous")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
