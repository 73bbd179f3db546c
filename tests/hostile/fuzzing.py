"""Changed files and values for hypothesis."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is missing: make setup")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from limits import bounded as bounded
from limits import little_memory as little_memory

INPUTS = int(os.environ.get("SQAT_FUZZ") or (100_000 if os.environ.get("SQAT_FAULTS") == "full" else 0))

HOSTILE = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 65_537, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**15),
    *(10**40, 10**400, 0.5, -0.0, 1e-320, 1e308, 1e999, -1e999, float("nan")),
    *("", "0", "1", "-3", "1e3", "1e999", "nan", "null", "true", "../../etc/passwd", "/dev/zero", "a" * 5000, "\0"),
    *("\ud800", "é" * 300, "%s%n{0}", "[EOS]", "silu", "sqat", "rxnn", "model.safetensors", "\u202e\x1b[31m"),
    *([], {}, [[]], [0] * 1000, {"": ""}, {"a": {"b": {"c": {}}}}, {"type": "Sequence"}, [None, [], {}], ["a", "b"]),
]


def fuzz(quick: int) -> Callable[[Any], Any]:
    """Hypothesis settings: `quick` inputs unless the environment asks for more."""
    return settings(
        max_examples=INPUTS or quick,
        derandomize=INPUTS <= 1000,  # in `make test` and `make fuzz` as it is: the same inputs every time
        database=None,
        deadline=None,  # `bounded` has one that also ends what hangs
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@st.composite
def changed_bytes(draw: Any, valid: bytes) -> bytes:
    """A file with some bytes changed, cut out, doubled or put in, or its end cut off."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("set", "set", "flip", "cut", "double", "insert", "truncate", "number")))
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 1024)))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from((b"\0" * length, b"[" * length, b"{", b'"', b"\xff\xfe", b"9" * length)))
        elif kind == "truncate":
            del data[at:]
        else:
            value = draw(st.sampled_from((0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)))
            data[at : at + 8] = value.to_bytes(8, "little")
    return bytes(data)


def places(value: Any) -> list[tuple[Any, ...]]:
    """Where the values of parsed JSON are: paths of keys, at most 40 of each long list or object."""
    found: list[tuple[Any, ...]] = [()]
    if isinstance(value, dict):
        keys: list[Any] = list(value)[:40]
    elif isinstance(value, list):
        keys = list(range(min(len(value), 40)))
    else:
        return found
    for key in keys:
        found += [(key, *path) for path in places(value[key])]
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def changed_json(draw: Any, valid: Any, names: tuple[str, ...] = ()) -> Any:
    """Parsed JSON with some values replaced, removed, renamed, moved or nested."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            if draw(st.integers(0, 19)) == 0:
                value = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
            continue
        holder, key = _at(value, path[:-1]), path[-1]
        kind = draw(st.sampled_from(("set", "set", "set", "near", "remove", "rename", "move", "nest")))
        if kind == "set":
            holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        elif kind == "near" and isinstance(holder[key], int | float):
            holder[key] = holder[key] * draw(st.sampled_from((-1, 0, 2, 10, 1000, 10**9))) + draw(st.integers(-2, 2))
        elif kind == "remove":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from((*names, *map(str, HOSTILE[-30:-10]))))] = holder.pop(key)
        elif kind == "move":
            holder[key] = copy.deepcopy(_at(value, draw(st.sampled_from(places(value)))))
        else:
            for _ in range(draw(st.sampled_from((1, 3, 40, 100)))):
                holder[key] = [holder[key]] if draw(st.booleans()) else {"a": holder[key]}
    return value


@st.composite
def json_files(draw: Any, valid: Any, names: tuple[str, ...] = ()) -> bytes:
    """A JSON file: changed as a value, and one time in four as bytes."""
    value = draw(changed_json(valid, names))
    text = json.dumps(value).encode()
    return draw(changed_bytes(text)) if draw(st.integers(0, 3)) == 0 else text
