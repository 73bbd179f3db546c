"""Locks that die with their owner: a killed process holds nothing, so no lock on disk is ever stale.

All are `flock`s, on open files. Where a file system has none, work goes on without.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from weakref import WeakValueDictionary

from sqat.errors import ConfigError

logger = logging.getLogger(__name__)

OWNER_BYTES = 200


def take(path: Path, *, wait: bool = False) -> int:
    """Lock a file or folder that is there. Returns an open file's number: closing that lets go.

    Raises:
        BlockingIOError: another has it, and `wait` is false.
        FileNotFoundError: it is not there, or no longer.
        OSError: it cannot be opened, or its file system has no locks.
    """
    while True:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks what may be written alone
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # renamed or replaced by who had it before


class Lock:
    """A lock by a file of its own, which says who has it; held until `release`, or until nobody refers to it.

    Args:
        path: the file; it is made where it is missing, and stays.
        busy: what to say where another has it, as "a run is going on in runs/x".

    Raises:
        ConfigError: another process has it.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, busy: str) -> None:
        self.handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self.handle, OWNER_BYTES, 0).decode(errors="replace").strip()
            self.release()
            who = f" ({owner})" if owner else ""
            raise ConfigError(f"{busy}{who}: wait for it, stop it, or choose another folder (--out)") from None
        except OSError as error:
            logger.info("%s cannot be locked, so nothing keeps others away: %s", path, error)
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.release()


_ours: WeakValueDictionary[Path, Lock] = WeakValueDictionary()


def shared_lock(path: Path, busy: str) -> Lock:
    """As :class:`Lock`, but one for all of this process that ask; for objects, of which a notebook may have several."""
    path = path.resolve()
    lock = _ours.get(path)
    if lock is None or lock.handle is None:
        lock = _ours[path] = Lock(path, busy)
    return lock
