"""Folders, and files in shared folders, that are there whole or not at all.

A folder is written beside its destination, flushed to disk, and renamed into place. Where the destination exists, it is
moved aside first, to `.NAME.previous`; a crash between the two renames leaves that, and :func:`recover` puts it back.
A writer at work has the folder that it moves aside locked, by which readers tell it from one that died.
Every folder gets a list of its files' checksums (:mod:`sqat.checksums`), by which damage is found later.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqat.checksums import relisted, write_checksums
from sqat.durable import flush, make_folder, temporary_beside, writing
from sqat.errors import StorageError
from sqat.lock import take

logger = logging.getLogger(__name__)

ATTEMPTS = 100  # at replacing a folder that others put back or replace at the same time
_OUTRUN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)  # what a rename fails with where they were quicker


@contextmanager
def write_folder(destination: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it becomes `destination`, replacing what was there; on an error
    nothing changes.

    Raises:
        StorageError: the system refuses, as where the disk is full.
    """
    destination = Path(destination).resolve()  # through a link, to what it stands for
    if not destination.name:
        raise StorageError(f"{destination} cannot be replaced: it is the root of all folders; name one within it")
    with writing(destination):
        make_folder(destination.parent)
        recover(destination)
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
    """Yield an empty temporary folder; on success its files move into `folder`, which exists: each replaces its
    namesake whole, and others stay. Where the folder has a list of checksums, it lists these files, too, from then on.

    For folders that are not this package's alone; a new one is better written by :func:`write_folder`.

    Raises:
        StorageError: the system refuses, as where the disk is full.
    """
    folder = Path(folder)
    with writing(folder), temporary_beside(folder / "writing", folder=True) as temporary:
        yield temporary
        paths = sorted(temporary.iterdir())
        for path in paths:
            flush(path)
        with relisted(folder, [path.name for path in paths]):
            for path in paths:
                os.replace(path, folder / path.name)
        flush(folder)


def recover(destination: str | Path) -> None:
    """Put back the previous folder where a crash left only that, and clear the remains of one that was replaced. A
    writer that is between the two renames is waited for.
    """
    destination = Path(destination).resolve()
    if not destination.name:
        return  # the root, which nobody replaces
    previous = _previous(destination)
    if not previous.exists():
        return
    handle = None
    try:
        handle = take(previous, wait=not destination.exists())
    except (BlockingIOError, FileNotFoundError):
        return  # its writer is about to remove it, or has
    except OSError:
        pass  # a file system without locks
    try:
        if previous.exists() and not destination.exists():
            logger.warning("%s was being replaced when its writer stopped; the previous one is put back", destination)
        with writing(destination):
            _settle(destination)
    finally:
        if handle is not None:
            os.close(handle)


def _replace(temporary: Path, destination: Path) -> None:
    for left in reversed(range(ATTEMPTS)):
        recover(destination)
        handle = None
        with suppress(OSError):  # it is new, or the file system has no locks
            handle = take(destination, wait=True)
        try:
            if destination.exists():
                destination.rename(_previous(destination))
            temporary.rename(destination)
            return
        except OSError as error:
            if not left or error.errno not in _OUTRUN or not temporary.exists():
                raise
        finally:
            _settle(destination)
            if handle is not None:
                os.close(handle)


def _settle(destination: Path) -> None:
    """Of destination and previous, leave the first."""
    previous = _previous(destination)
    if destination.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        try:
            previous.rename(destination)
        except OSError as error:
            if error.errno not in _OUTRUN:
                raise


def _previous(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.previous")
