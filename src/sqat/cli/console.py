"""Terminal output that commands share. Of several ranks only the first prints, apart from errors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sqat.train import Trainer

PROCESSES, RANK = int(os.environ.get("WORLD_SIZE") or 1), os.environ.get("RANK", "0")
FIRST = PROCESSES == 1 or RANK == "0"

console = Console(quiet=not FIRST, highlight=False)
errors = Console(stderr=True, highlight=False)


def is_live(console: Console) -> bool:
    """Whether a console can show what changes in place."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def progress(doing: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar with the time left or, without a terminal, a line every ten seconds; yields what moves it: what is
    being done, how much of it is done, and how much there is, if that is known.
    """
    import rich.progress as parts

    live = is_live(errors)
    columns = parts.TextColumn("{task.description}"), parts.BarColumn(), parts.TimeRemainingColumn()
    began = shown = time.monotonic()
    with parts.Progress(*columns, console=errors, transient=True, disable=not live) as bar:
        task = bar.add_task(doing, total=None)

        def update(doing: str, done: int, total: int | None) -> None:
            nonlocal shown
            bar.update(task, description=doing, completed=done, total=total)
            now = time.monotonic()
            if not live and now - shown > 10 and FIRST:
                left = f", about {(now - began) / done * (total - done):.0f} s left" if total and done else ""
                errors.print(f"{doing}, {now - began:.0f} s{left}", soft_wrap=True)
                shown = now

        yield update


@contextmanager
def tokenising() -> Iterator[Callable[[int, int, int | None], None]]:
    """Show progress while a tokenizer is trained and token files are built; yields the callback for it."""
    with progress("reading data") as update:

        def tokenised(documents: int, tokens: int, total: int | None) -> None:
            done = f"{documents:,} of {total:,} documents" if total else f"{documents:,} documents"
            doing = f"tokenising: {tokens:,} tokens," if tokens else "training a tokenizer on"
            update(f"{doing} {done}", documents, total)

        yield tokenised


def leave_if_interrupted(trainer: Trainer) -> None:
    """If a signal stopped the run, exit with the code that shells expect (130 or 143), so that scripts do not take the
    run for finished. With several ranks the exit code is 0: a launcher would restart them after any other.
    """
    if trainer.interrupted:
        console.print(
            f"Stopped at step {trainer.state.step:,} of {trainer.total_steps:,}. "
            "Continue with the same command and --resume."
        )
        if PROCESSES > 1:
            return
        raise typer.Exit(128 + (trainer.signals.received or signal.SIGINT))
