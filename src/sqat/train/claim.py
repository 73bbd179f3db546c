"""One run at a time in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from sqat.durable import make_folder, writing
from sqat.errors import ConfigError
from sqat.lock import Lock, shared_lock

LOCK_FILE = ".lock"


def claim(out: Path | None) -> Lock | None:
    """Lock a run's folder, made if need be, as long as the result is kept. `None` where there is nothing to lock: no
    folder, or a rank other than the first of a job, which runs under the first one's lock.

    Raises:
        ConfigError: a run of another process is there, or `out` is no folder.
        StorageError: it cannot be made.
    """
    if out is None or int(os.environ.get("RANK", "0")) > 0:
        return None
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, but must be a folder, or not exist yet")
    with writing(out):
        make_folder(out)
        return shared_lock(out / LOCK_FILE, f"a run is going on in {out}")
