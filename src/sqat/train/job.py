"""Which job of torchrun a run belongs to: what torchrun starts again goes on unasked with that run, and no other."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from sqat.durable import replace_file, writing

FILE = ".job"


def is_own(out: Path, restarted: bool) -> bool:
    """Whether an earlier start of this very job was let into the run's folder, which the caller has locked.

    A first start has none before it, whatever job of the same name was there: where it is refused, so are those that
    follow.

    Args:
        restarted: whether torchrun has started the job's processes again.
    """
    name, path = _job(), out / FILE
    if name is None:
        return False
    if not restarted:
        with writing(path):
            path.unlink(missing_ok=True)
        return False
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(name.encode()) + 1) == name.encode()


def sign(out: Path) -> None:
    """Note that this job has been let into the folder; nothing where torchrun has not started it."""
    if (name := _job()) is not None:
        replace_file(out / FILE, name)


def _job() -> str | None:
    """Its name: torchrun's `--rdzv-id`, or where that is the default that all jobs have, the launcher's process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name == "none":
        return f"{socket.gethostname()} {os.getppid()}"
    return None if name is None else name.encode(errors="replace").decode()
