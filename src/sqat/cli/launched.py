"""A command that a launcher, such as torchrun, has started in several processes: they speak with one voice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from sqat.errors import ConfigError, ProcessLostError, SqatError

PROCESSES = int(os.environ.get("WORLD_SIZE") or 1)
FIRST = PROCESSES == 1 or os.environ.get("RANK", "0") == "0"

_TOGETHER = ("train", "uptrain")  # the commands that know what to do together


def check_command(arguments: Sequence[str]) -> None:
    """Raise a ConfigError where each process would do the same as the others, at once and in the same place."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if PROCESSES > 1 and command is not None and command not in _TOGETHER:
        raise ConfigError(
            f"`sqat {command}` was launched in {PROCESSES} processes, but runs in one: start it without a launcher"
        )


def is_ours_to_say(error: SqatError) -> bool:
    """Whether this process is to print an error: one of those that have the same, and of those that merely miss another
    process one alone, if nobody has said why.
    """
    if PROCESSES == 1:
        return True
    from datetime import timedelta

    import torch.distributed as dist

    from sqat.train.distributed import restarts

    # the store outlives the processes that torchrun starts again: what was said then is said anew
    said_here = f"sqat/restart-{restarts()}"
    try:  # the store through which the processes find each other
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not say that it is public
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )
        said = store.add(f"{said_here}/said", 1)
        if isinstance(error, ProcessLostError):
            return said == 1
        return store.add(f"{said_here}/{hashlib.sha256(str(error).encode()).hexdigest()}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # there is none, or it is gone: better twice than never
        return True
