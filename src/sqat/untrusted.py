"""What others wrote, read within bounds: text shown in messages, JSON of limited size and depth.

Sizes are limited before anything is parsed, and what a parser itself cannot bound (depth, aliases, digits) becomes a
plain ValueError, which callers turn into an error that names the file.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 26
MAX_DEPTH = 64  # of lists and mappings in one another
MAX_SHOWN = 600  # characters of a value in a message
MAX_NAMES = 12  # of a list of names in a message

_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxdict, _shown.maxlist, _shown.maxtuple = 4, 40, 40, 40
_shown.maxstring, _shown.maxother, _shown.maxlong = 200, 200, 60


def shown(value: object) -> str:
    """`repr(value)`, shortened where it is long or deep."""
    try:
        text = _shown.repr(value)
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    except (ValueError, RecursionError):  # of a number with more digits than Python writes out
        return f"a {type(value).__name__} too large to show"


def named(names: Iterable[object]) -> str:
    """The first of some names, for a message; as one writes them, but escaped and shortened where they are odd."""
    parts = [text if len(text := str(name)) < 60 and text.isprintable() else shown(text) for name in names]
    return ", ".join(parts[:MAX_NAMES]) + (f" and {len(parts) - MAX_NAMES} more" if len(parts) > MAX_NAMES else "")


def read_text(path: Path, most_bytes: int) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: not UTF-8, or as :func:`read_bytes`.
        OSError: cannot be read.
    """
    return read_bytes(path, most_bytes).decode("utf-8")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file.

    Raises:
        ValueError: larger than `most_bytes`, or no file but a pipe or device, which may have no end.
        OSError: cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return data


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES, *, finite: bool = True) -> Any:
    """The value in a JSON file; see :func:`parse_json`. Raises OSError, too, where it cannot be read."""
    return parse_json(read_text(path, most_bytes), finite=finite)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value that a JSON text holds.

    Args:
        finite: whether NaN and Infinity, which JSON lacks and Python writes, are refused.

    Raises:
        ValueError: not JSON, a name twice in an object, numbers of too many digits, or deeper than `MAX_DEPTH`.
    """
    options: dict[str, Any] = {"parse_constant": _refuse_constant} if finite else {}
    try:
        value = json.loads(text, object_pairs_hook=_unique, **options)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    _require_shallow(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is there twice in one object")
    return values


def _require_shallow(value: Any) -> None:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        parts = [part for holder in level for part in (holder.values() if isinstance(holder, dict) else holder)]
        level = [part for part in parts if isinstance(part, (dict, list))]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
