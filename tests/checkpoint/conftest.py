"""Killing a writer."""

import os
import sys
from collections.abc import Callable

import pytest

CHANGES = ("open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp")
KILLED, ALIVE, FAILED = 9, 0, 1


def survives(function: Callable[[], object], n: int) -> bool:
    """Run `function` in a forked process that dies, with nothing cleaned up, just before its n-th change to the file
    system; whether it lived to the end.
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (KILLED, ALIVE)
        return status == ALIVE
    seen = 0

    def count(event: str, _: object) -> None:
        nonlocal seen
        seen += event in CHANGES
        if seen == n:
            os._exit(KILLED)

    status = FAILED
    try:
        sys.addaudithook(count)
        function()
        status = ALIVE
    finally:
        os._exit(status)


@pytest.fixture(name="survives")
def _survives() -> Callable[[Callable[[], object], int], bool]:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    return survives
