"""Terminal output that commands share."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from sqat.cli.launched import FIRST, PROCESSES

if TYPE_CHECKING:
    from sqat.train import Trainer

console = Console(quiet=not FIRST)
errors = Console(stderr=True)


def is_live(console: Console) -> bool:
    """Whether a console can show what changes in place."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def tokenising() -> Iterator[Callable[[int, int], None]]:
    """Show a status line while token files are built, or without a terminal a line every ten seconds; yields the
    callback that updates it.
    """
    started = shown = time.monotonic()

    def update(documents: int, tokens: int) -> None:
        nonlocal shown
        now = time.monotonic()
        doing = f"tokenising: {tokens:,} tokens of" if tokens else "training a tokenizer on"
        text = f"{doing} {documents:,} documents, {now - started:.0f} s"
        status.update(text)
        if not is_live(errors) and now - shown > 10 and FIRST:
            errors.print(text, highlight=False)
            shown = now

    with errors.status("reading data …") as status:
        yield update


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
