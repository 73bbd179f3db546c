"""Commands that a launcher such as torchrun starts in several processes: only one of them prints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from sqat.errors import ConfigError, ProcessLostError, SqatError

PROCESSES = int(os.environ.get("WORLD_SIZE") or 1)
FIRST = PROCESSES == 1 or os.environ.get("RANK", "0") == "0"

_TOGETHER = ("train", "uptrain")  # the commands that support several ranks


def check_command(arguments: Sequence[str]) -> None:
    """Raise a ConfigError if every process would do the same work in the same place."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if PROCESSES > 1 and command is not None and command not in _TOGETHER:
        raise ConfigError(
            f"`sqat {command}` was launched in {PROCESSES} processes, but runs in one: start it without a launcher"
        )


def is_ours_to_say(error: SqatError) -> bool:
    """Whether this process prints an error. Of several with the same error one does; if ranks only report that another
    rank is gone, one of them does, unless the cause has been printed.
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
    except (KeyError, ValueError, RuntimeError):  # there is none, or it is gone; better to print twice than never
        return True
