"""Locks: of one at a time, told by who has them, gone with their owner."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from sqat.errors import ConfigError
from sqat.lock import locked

BUSY = "a run is going on in here"
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

# A process that holds the lock until its input ends.
OWNER = """
from pathlib import Path
from sqat.lock import locked
with locked(Path({path!r}), "", wait={wait}):
    print(1, flush=True)
    input()
"""


def test_one_process_at_a_time_and_a_killed_one_leaves_nothing(tmp_path):
    path = tmp_path / ".lock"
    owner = subprocess.Popen([sys.executable, "-c", OWNER.format(path=str(path), wait=False)], **PIPES)
    owner.stdout.readline()
    message = rf"^{BUSY} \(process {owner.pid} on .+\): wait for it, stop it, or choose another folder \(--out\)$"
    with pytest.raises(ConfigError, match=message), locked(path, BUSY):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with locked(path, BUSY):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_process_is_refused_its_own_lock_but_its_objects_can_share_one(tmp_path):
    """Until the last of them lets go."""
    path = tmp_path / ".lock"
    with locked(path, BUSY), pytest.raises(ConfigError, match=BUSY), locked(path, BUSY):
        pass
    with locked(path, BUSY, shared=True):
        with locked(tmp_path / "." / ".lock", BUSY, shared=True):
            pass
        waiting = subprocess.Popen([sys.executable, "-c", OWNER.format(path=str(path), wait=True)], **PIPES)
        assert waiting.poll() is None
    assert waiting.stdout.readline() == b"1\n"  # the last of them let go
    waiting.communicate(b"\n")


def test_without_locks_the_block_still_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, "not supported")))
    with locked(tmp_path / ".lock", BUSY):
        pass
