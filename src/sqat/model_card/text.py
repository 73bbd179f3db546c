"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def table(heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; a bar in a cell is escaped."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def public_name(name: str) -> str:
    """What a card shows of a path: nothing of the folders of the machine it was written on."""
    return f"PATH/{Path(name).name}" if name.startswith(("/", "~")) or Path(name).is_absolute() else name
