"""Locks that die with their owner: a killed process holds none, so a lock on disk is never stale."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sqat.errors import ConfigError

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, busy: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold a lock by a file of its own, which is made, stays, and says who has it. On a file system without locks, work
    goes on without.

    Args:
        path: the lock's file.
        busy: what to say if another has it, as "a run is going on in runs/x".
        shared: let several objects of this process hold it at once.
        wait: wait for it, however long that takes.

    Raises:
        ConfigError: another process has it, or another object of this one where it is not shared.
        OSError: the file cannot be made.
    """
    path.touch()
    lock = FileLock(path, timeout=-1 if wait else 0, is_singleton=shared, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        owner = path.read_text(encoding="utf-8", errors="replace").strip()
        who = f" ({owner})" if owner else ""
        raise ConfigError(f"{busy}{who}: wait for it, stop it, or choose another folder (--out)") from None
    except OSError as error:
        logger.info("%s cannot be locked, so nothing keeps others away: %s", path, error)
    try:
        with contextlib.suppress(OSError):  # a full disk
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()
