"""What others wrote, read within bounds: text shown in messages, JSON and YAML of limited size and depth.

Sizes are limited before anything is parsed, and what a parser itself cannot bound (depth, aliases, digits) becomes a
plain ValueError, which callers turn into an error that names the file.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MAX_JSON_BYTES = 1 << 26
MAX_YAML_BYTES = 1 << 18
MAX_DEPTH = 64  # of lists and mappings in one another
MAX_YAML_NODES = 100_000  # with every alias written out
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
        ValueError: larger than `most_bytes`, not UTF-8, or no file but a pipe or device, which may have no end.
        OSError: cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return data.decode("utf-8")


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


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds: plain data alone, never an object of a class.

    Raises:
        ValueError: not YAML, larger than `MAX_YAML_BYTES`, deeper than `MAX_DEPTH`, a value that is none (the 99th of a
            month), or aliases that stand for more than `MAX_YAML_NODES` values or for themselves.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        # Of PyYAML's readers of dates and numbers, which pass on whatever Python raises.
        raise ValueError(f"it holds a value that cannot be read: {error}") from error


def _require_bounded(node: yaml.Node, known: dict[int, tuple[int, int]], depth: int = 0) -> tuple[int, int]:
    """How many values a node is, with its aliases written out, and how deep; raises a YAMLError where too many."""
    if id(node) in known:
        return known[id(node)]
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    size, height = 1, 0
    if depth <= MAX_DEPTH:
        below = [_require_bounded(part, known, depth + 1) for part in parts]
        size += sum(part_size for part_size, _ in below)
        height = max((part_height + 1 for _, part_height in below), default=0)
    if depth + height > MAX_DEPTH:
        raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep, or in itself")
    if size > MAX_YAML_NODES:
        raise yaml.YAMLError(f"it stands for more than {MAX_YAML_NODES:,} values, aliases written out")
    known[id(node)] = size, height
    return size, height
