"""Where compiled loops are kept between processes."""

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

_lock = threading.Lock()  # numba's setting is one for all threads


@contextmanager
def kept_on_disk() -> Iterator[bool]:
    """Functions made in here for numba's cache are kept in a folder of ours (in $NUMBA_CACHE_DIR, or with what else we
    can make again); says whether there can be one.

    numba looks at the time of a function's own file alone. What it calls lies in others here, so the folder is that of
    these very sources.
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
    except OSError:  # read-only: compiled anew in every process
        return None
