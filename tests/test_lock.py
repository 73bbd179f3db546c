"""Locks: of one at a time, told by who has them, gone with their owner."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from sqat.errors import ConfigError
from sqat.lock import Lock, shared_lock, take

BUSY = "a run is going on in here"


def test_one_at_a_time_and_who_it_is(tmp_path):
    path = tmp_path / ".lock"
    with Lock(path, BUSY):
        message = rf"^{BUSY} \(process {os.getpid()} on .+\): wait for it, stop it, or choose another folder \(--out\)$"
        with pytest.raises(ConfigError, match=message):
            Lock(path, BUSY)
    Lock(path, BUSY).release()


def test_of_a_killed_process_nothing_is_left(tmp_path):
    path = tmp_path / ".lock"
    code = f"from sqat.lock import *; lock = Lock(Path({str(path)!r}), ''); print(1, flush=True); input()"
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    with pytest.raises(ConfigError, match=rf"process {owner.pid} on"):
        Lock(path, BUSY)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with Lock(path, BUSY):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_shared_within_a_process_until_nobody_refers_to_it(tmp_path):
    path = tmp_path / ".lock"
    first, second = shared_lock(path, BUSY), shared_lock(tmp_path / "." / ".lock", BUSY)
    assert first is second
    del first
    with pytest.raises(ConfigError):
        Lock(path, BUSY)
    del second
    Lock(path, BUSY).release()


def test_without_locks_work_goes_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError("not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with Lock(tmp_path / ".lock", BUSY), Lock(tmp_path / ".lock", BUSY):
        pass
    with pytest.raises(OSError, match="not supported"):
        take(tmp_path)


def test_take(tmp_path):
    handle = take(tmp_path)
    with pytest.raises(BlockingIOError):
        take(tmp_path)
    os.close(handle)
    os.close(take(tmp_path))
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "nothing")


@pytest.mark.parametrize("then", ["replaced", "removed"])
def test_what_was_renamed_while_one_waited_is_not_what_is_locked(tmp_path, monkeypatch, then):
    path = tmp_path / "folder"
    path.mkdir()
    flock, calls = fcntl.flock, []

    def late(handle, how):
        if not calls:
            path.rename(tmp_path / "aside")
            if then == "replaced":
                path.mkdir()
        calls.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    if then == "removed":
        with pytest.raises(FileNotFoundError):
            take(path, wait=True)
        return
    handle = take(path, wait=True)
    assert os.path.samestat(os.fstat(handle), path.stat())
    os.close(handle)
