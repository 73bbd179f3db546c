"""Folders: the cache, a run's, whether one can be written, and taking away what a failed command has made."""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sqat.errors import ConfigError

logger = logging.getLogger(__name__)


def default_cache() -> Path:
    """The cache folder: $SQAT_CACHE, or $XDG_CACHE_HOME/sqat, or ~/.cache/sqat. Where it cannot be written, or there is
    no home, one for this process alone, with a warning.
    """
    own, shared = os.environ.get("SQAT_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _writable(own or f"{shared}/sqat")


@cache
def _writable(name: str) -> Path:
    try:
        folder = Path(name).expanduser()
        try_to_write(folder)
        return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        temporary = tempfile.TemporaryDirectory(prefix="sqat-cache-")
        atexit.register(temporary.cleanup)
        logger.warning("nothing is cached, since %s cannot be written (%s); SQAT_CACHE may name another", name, error)
        return Path(temporary.name)


def try_to_write(folder: Path) -> None:
    """Make a folder, if need be, and a file in it that goes at once. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def run_of(path: Path) -> Path:
    """The folder of the run that a path belongs to: itself, or of its `checkpoints`, or of a checkpoint in these."""
    return next((place.parent for place in (path, path.parent) if place.name == "checkpoints"), path)


@contextmanager
def removed_if_unused(folder: Path, names: Set[str]) -> Iterator[None]:
    """After an error, remove the folder, and those above it, that were made within this context, where the folder holds
    nothing but the files `names`.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if missing and {path.name for path in folder.iterdir()} <= names:
                for name in names:
                    (folder / name).unlink(missing_ok=True)
                for path in missing:
                    path.rmdir()
        raise


def require_free(out: Path, field: str) -> None:
    """Raise a ConfigError naming `field` unless `out` can be written: not there, or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{field} is {out}, which exists and is not empty: choose a new or an empty folder")
