"""What commands share for talking to a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from sqat.cli.launched import FIRST

console = Console(quiet=not FIRST)
errors = Console(stderr=True)


@contextmanager
def tokenising() -> Iterator[Callable[[int, int], None]]:
    """A status line for building token files; yields the callback that updates it."""
    with console.status("reading data …") as status:
        yield lambda documents, tokens: status.update(f"tokenising: {documents:,} documents, {tokens:,} tokens")
