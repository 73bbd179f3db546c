"""What commands share for talking to a terminal."""

from __future__ import annotations

import signal
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


@contextmanager
def tokenising() -> Iterator[Callable[[int, int], None]]:
    """A status line for building token files; yields the callback that updates it."""
    with console.status("reading data …") as status:
        yield lambda documents, tokens: status.update(f"tokenising: {documents:,} documents, {tokens:,} tokens")


def leave_if_interrupted(trainer: Trainer) -> None:
    """End the command where a signal stopped its run, with the exit code that shells give it (130, 143): what waits for
    the run must not take it for done. (Several processes end with 0: to their launcher, anything else is a failure,
    after which it would start them again.)
    """
    if trainer.interrupted:
        console.print(
            f"Stopped at step {trainer.state.step:,} of {trainer.total_steps:,}. "
            "Go on with the same command and --resume."
        )
        if PROCESSES > 1:
            return
        raise typer.Exit(128 + (trainer.signals.received or signal.SIGINT))
