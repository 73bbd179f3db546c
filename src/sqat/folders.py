"""Folders outside the user's own, and whether one is free to be written."""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        temporary = tempfile.TemporaryDirectory(prefix="sqat-cache-")
        atexit.register(temporary.cleanup)
        logger.warning("nothing is cached, since %s cannot be written (%s); SQAT_CACHE may name another", name, error)
        return Path(temporary.name)


def require_free(out: Path, field: str) -> None:
    """Raise a ConfigError naming `field` unless `out` can be written: not there, or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{field} is {out}, which exists and is not empty: choose a new or an empty folder")
