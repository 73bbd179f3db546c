"""YAML of limited size and depth; apart from `untrusted`, since it takes a library that most modules do without."""

from __future__ import annotations

from typing import Any

import yaml

from sqat.untrusted import MAX_DEPTH

MAX_YAML_BYTES = 1 << 18
MAX_YAML_NODES = 100_000  # with every alias written out


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
