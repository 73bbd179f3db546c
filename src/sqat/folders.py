"""Folders outside the user's own, and whether one is free to be written."""

from __future__ import annotations

import os
from pathlib import Path

from sqat.errors import ConfigError


def default_cache() -> Path:
    """The cache folder: $SQAT_CACHE, or $XDG_CACHE_HOME/sqat, or ~/.cache/sqat."""
    if own := os.environ.get("SQAT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqat"


def require_free(out: Path, field: str) -> None:
    """Raise a ConfigError naming `field` unless `out` can be written: not there, or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{field} is {out}, which exists and is not empty: choose a new or an empty folder")
