"""What must hold for every input: an error of errors.py or none, soon, in little memory."""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sqat.errors import SqatError

SECONDS = 20  # of one input, on a machine that does other things as well
SPARE_BYTES = 3 << 30  # of addresses, beyond what the process has when a test begins


class Hangs(BaseException):
    """An input took more than its time; no Exception, so that nothing takes it for an ordinary one."""


@contextmanager
def bounded() -> Iterator[None]:
    """An input's bounds: SqatError or nothing comes out, within `SECONDS`, and nobody ran out of memory on the way."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SqatError as error:
        link: BaseException | None = error
        while link is not None:
            assert not isinstance(link, MemoryError), "a bound on memory was met by the machine's, not by a check"
            assert type(link).__name__ != "PanicException", f"a library gave up in the middle: {link}"
            link = link.__cause__ or link.__context__
        text = str(error)
        assert text
        assert len(text) < 20_000, "a message nobody can read"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory(spare: int = SPARE_BYTES) -> Iterator[None]:
    """While open, the process may have `spare` bytes of addresses more than now: asking for more is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
