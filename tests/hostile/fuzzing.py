"""Damaged files for hypothesis, and what must hold for each: an error of errors.py or none, soon, in little memory."""

import copy
import json
import os
import resource
import signal
import warnings
from contextlib import contextmanager

import pytest

from sqat.errors import SqatError

pytest.importorskip("hypothesis", reason="hypothesis is missing: make setup")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS = 20  # for one input, on a busy machine
SPARE_BYTES = 3 << 30  # of addresses, beyond what the process has when a test begins
INPUTS = int(os.environ.get("SQAT_FUZZ") or 0)

# Values that a field of JSON may be changed to.
ODD = [
    *(None, True, 0, -1, 3, 65_537, 2**31, 2**53 + 1, 2**63, 10**40, 10**400, 0.5, 1e308, 1e999, float("nan")),
    *("", "0", "-3", "1e999", "null", "../../etc/passwd", "/dev/zero", "a" * 5000, "\0", "\ud800", "\u202e\x1b[31m"),
    *([], {}, [[]], [0] * 1000, {"": ""}, {"a": {"b": {"c": {}}}}),
]


class Hangs(BaseException):
    """An input took too long. Not an Exception, so that no reader takes it for an ordinary one."""


@contextmanager
def bounded():
    """Nothing but a SqatError with a short message comes out, within `SECONDS`."""

    def give_up(number, frame):
        raise Hangs(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SqatError as error:
        if not 0 < len(str(error)) < 20_000:
            raise AssertionError("a message that nobody can read") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory(spare=SPARE_BYTES):
    """The process may have `spare` bytes of addresses more than now: asking for more is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(quick):
    """Hypothesis settings: `quick` inputs, or as many as SQAT_FUZZ says."""
    return settings(
        max_examples=INPUTS or quick,
        derandomize=INPUTS <= 1000,  # the same inputs every time in `make test` and `make fuzz`
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@st.composite
def changed_bytes(draw, valid):
    """A file with some bytes changed, cut out or doubled, or its end cut off."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("set", "flip", "cut", "double", "truncate")))
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from((1, 2, 8, 64, 1024)))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def _places(value):
    """Where the values of parsed JSON are: paths of keys, at most 40 of each list or object."""
    keys = (
        list(value)[:40] if isinstance(value, dict) else list(range(len(value)))[:40] if isinstance(value, list) else []
    )
    return [(), *((key, *path) for key in keys for path in _places(value[key]))]


@st.composite
def changed_json(draw, valid):
    """Parsed JSON with some values replaced, scaled, removed or nested."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(value)[1:] or [()]))
        if not path:
            break
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        key = path[-1]
        kind = draw(st.sampled_from(("set", "set", "scale", "remove", "nest")))
        if kind == "set":
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "scale" and isinstance(holder[key], int | float):
            holder[key] = holder[key] * draw(st.sampled_from((-1, 0, 2, 1000, 10**9))) + draw(st.integers(-2, 2))
        elif kind == "remove":
            del holder[key]
        else:
            for _ in range(draw(st.sampled_from((1, 100)))):
                holder[key] = [holder[key]]
    return value


@st.composite
def json_files(draw, valid):
    """A JSON file: changed as a value, and one time in four as bytes, too."""
    text = json.dumps(draw(changed_json(valid))).encode()
    return draw(changed_bytes(text)) if draw(st.integers(0, 3)) == 0 else text
