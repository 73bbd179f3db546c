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
def locked(path: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock by a file of its own, which is made, stays, and says who has it. On a file system without locks, work
    goes on without.

    Args:
        path: the lock's file.
        busy: what to say if another has it, as "a run is going on in runs/x".
        shared: let several objects of this process hold it at once.

    Raises:
        ConfigError: another process has it, or another object of this one where it is not shared.
        OSError: the file cannot be made.
    """
    path.touch()
    lock = FileLock(path, timeout=0, is_singleton=shared, thread_local=False, fallback_to_soft=False)
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


def take(path: Path, *, wait: bool = False) -> int:
    """Lock an existing file or folder. Returns an open file's number: closing that lets go, as does the process's end.

    Raises:
        BlockingIOError: another has it, and `wait` is false.
        FileNotFoundError: it does not exist, or no longer does.
        OSError: it cannot be opened, or there are no locks: on Windows, and on some file systems.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no locks on open files") from error
    while True:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks only what may be written
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # renamed or replaced by who had it before
