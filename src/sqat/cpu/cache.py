"""The cache of compiled loops, which later processes reuse."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sqat.folders import default_cache

_lock = threading.Lock()  # numba's setting is global to all threads


@contextmanager
def kept_on_disk() -> Iterator[bool]:
    """Let numba cache the functions compiled inside this context in a folder of ours, within $NUMBA_CACHE_DIR or our
    own cache; yields whether there is such a folder.

    numba checks only the modification time of a function's own file. Our functions call others in other files, so the
    folder's name is a hash of all these sources.
    """
    from numba import config

    folder = _folder()
    with _lock:
        before, config.CACHE_DIR = config.CACHE_DIR, folder or config.CACHE_DIR
        try:
            yield folder is not None
        finally:
            config.CACHE_DIR = before


@cache
def _folder() -> str | None:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or default_cache() / "kernels") / f"sqat-{digest[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:  # read-only: every process compiles again
        return None
