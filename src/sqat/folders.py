"""Folders outside the user's own."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """The folder for what can be made again: $SQAT_CACHE, or $XDG_CACHE_HOME/sqat, or ~/.cache/sqat."""
    if own := os.environ.get("SQAT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqat"
