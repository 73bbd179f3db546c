"""Atomic writes: a file or folder is written as `.NAME.sqat-tmp` beside its destination, then renamed.

What a killed writer left under that name goes when the same thing is written again. Two writers of one thing at once
are kept apart by a lock of the run, the comparison or the cache entry that it belongs to (:mod:`sqat.lock`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sqat.errors import StorageError

SUFFIX = ".sqat-tmp"

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there, or choose another folder"),
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another folder",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "choose another name"),
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn OSErrors of the block into a StorageError that names `path` and says what to do."""
    try:
        yield
    except StorageError as error:  # of a file within `path`
        raise _explained(path, error.__cause__ or error) from error.__cause__
    except ConnectionError:  # of a pipe or the network, which are not `path`
        raise
    except (OSError, SafetensorError) as error:
        raise _explained(path, error) from error


def _explained(path: str | Path, error: BaseException) -> StorageError:
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):  # how Rust's libraries tell it
        number = int(found[1])
    reason = os.strerror(number) if number in _ADVICE else str(error)
    advice = f"; {_ADVICE[number]}" if number in _ADVICE else ""
    return StorageError(f"{path} cannot be written: {reason}{advice}")


@contextmanager
def temporary_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a new empty file, or folder, under the hidden name beside `path`: renaming it to `path` is one step.
    Removed at the end, if it is still there.
    """
    temporary = _hidden(path)
    _remove(temporary)
    try:
        if folder:
            temporary.mkdir()
        else:
            temporary.touch()
        yield temporary
    finally:
        _remove(temporary)


def remove_remains(folder: Path) -> None:
    """Remove from a folder, in which nobody else writes now, what killed writers left under hidden names."""
    for path in folder.glob(f".*{SUFFIX}"):
        _remove(path)


def remove_folder(folder: Path) -> None:
    """Remove a folder that may be missing, so that it is never seen with only some of its files."""
    hidden = _hidden(folder)
    _remove(hidden)
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, hidden)
    _remove(hidden)


def replace_file(path: Path, content: str) -> None:
    """Replace a text file atomically.

    Raises:
        StorageError: the system refuses.
    """
    with writing(path), temporary_beside(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUFFIX}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
