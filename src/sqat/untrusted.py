"""Files that may come from anywhere: read up to a size, parsed as JSON, quoted in messages.

Sizes are checked before anything is read or parsed. All problems are a ValueError or an OSError, which callers turn
into an error that names the file.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 26
MAX_SHOWN = 600  # characters of a value in a message
MAX_NAMES = 12  # of a list of names in a message

_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxdict, _shown.maxlist, _shown.maxtuple = 4, 40, 40, 40
_shown.maxstring, _shown.maxother, _shown.maxlong = 200, 200, 60


def shown(value: object) -> str:
    """`repr(value)`, shortened if it is long or deep."""
    try:
        text = _shown.repr(value)
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    except (ValueError, RecursionError):  # of a number with more digits than Python writes out
        return f"a {type(value).__name__} too large to show"


def named(names: Iterable[object]) -> str:
    """The first of some names, for a message; unprintable and long ones are escaped and shortened."""
    parts = [text if len(text := str(name)) < 60 and text.isprintable() else shown(text) for name in names]
    return ", ".join(parts[:MAX_NAMES]) + (f" and {len(parts) - MAX_NAMES} more" if len(parts) > MAX_NAMES else "")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file.

    Raises:
        ValueError: larger than `most_bytes`, or a pipe or device, which may have no end.
        OSError: cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return data


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES, *, finite: bool = True) -> Any:
    """The value in a JSON file. Raises ValueError and OSError as :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_bytes(path, most_bytes).decode("utf-8"), finite=finite)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        finite: whether to refuse NaN and Infinity, which Python writes but JSON lacks.

    Raises:
        ValueError: not JSON, a number of thousands of digits, or nested too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
