"""Files that may come from anywhere: read up to a size, parsed as JSON, quoted in messages.

Sizes are checked before anything is read or parsed. All problems are a ValueError or an OSError, which callers turn
into an error that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 26
MAX_SHOWN = 600  # characters of a value in a message
MAX_NAMES = 12  # of a list of names in a message


def shown(value: object) -> str:
    """`repr(value)`, cut if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def named(names: Iterable[object]) -> str:
    """The first of some names, for a message; unprintable and long ones are escaped and shortened."""
    parts = [text if len(text := str(name)) < 60 and text.isprintable() else shown(text) for name in names]
    return ", ".join(parts[:MAX_NAMES]) + (f" and {len(parts) - MAX_NAMES} more" if len(parts) > MAX_NAMES else "")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file. Raises ValueError if it is larger than `most_bytes`, OSError if it cannot be read."""
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return data


def read_json(path: Path) -> Any:
    """The value in a JSON file; NaN and Infinity are numbers, as Python writes them.

    Raises:
        ValueError: larger than `MAX_JSON_BYTES`, not JSON, or nested too deep.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_bytes(path, MAX_JSON_BYTES))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
