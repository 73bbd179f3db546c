"""Several processes of one run: who is who, what they agree on, and who goes first.

A launcher (torchrun, `accelerate launch`) starts them; :func:`join` makes a group of them. In a run of one process
nothing here communicates, and every function gives what it would for a group of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sqat.errors import ConfigError, ProcessLostError, SqatError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # how long the others are waited for within a step, an evaluation or a checkpoint
PATIENCE = timedelta(days=7)  # and while one makes ready what all need, such as a tokenizer
# What the back ends say where another process is gone; gloo's errors have no class of their own.
_LOST = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset)|recvBytes|Broken pipe", re.IGNORECASE)


def launched() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarts() -> int:
    """How often torchrun has started the processes again (`--max-restarts`), after one on this machine failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join(device: str) -> None:
    """Make a group of the processes that a launcher started; nothing where there is one, or they are a group already.

    Each takes the GPU of its number on the machine; where there is none, its share of the cores.

    Args:
        device: as configured.

    Raises:
        ConfigError: one device named for all, more processes than GPUs, or an environment that no launcher made.
    """
    if launched() == 1 or dist.is_initialized():
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {launched()}, but {', '.join(missing)} is not set: start the processes with torchrun"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device is {device!r}, but must be auto, cpu or cuda in {launched()} processes: each takes one of its own"
        )
    if device != "cpu" and torch.cuda.is_available():
        if local_count() > torch.cuda.device_count():
            raise ConfigError(
                f"{local_count()} processes were launched here, but there are {torch.cuda.device_count()} GPUs: "
                "launch one process a GPU, or set device to cpu"
            )
        torch.cuda.set_device(local_rank())
        _make_group("cpu:gloo,cuda:nccl")
    else:
        _share_cores()
        _make_group("gloo")


def leave() -> None:
    """End the group, if there is one; every process has to."""
    if count() > 1:
        dist.destroy_process_group()


def count() -> int:
    """Processes in the group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


def local_rank() -> int:
    """This one's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def agree_to_stop(leave_at_once: bool, reason: str | None) -> tuple[bool, str | None]:
    """What the processes do together, where some may have been asked to stop: (whether to leave without an evaluation,
    why; `None` to go on).
    """
    if count() == 1:
        return leave_at_once, reason
    wish = torch.tensor(2 if leave_at_once else 1 if reason else 0)
    dist.all_reduce(wish, dist.ReduceOp.MAX)
    if not wish:
        return False, None
    return bool(wish == 2), next(filter(None, gather(reason)), None)


def gather(value: T, group: Any = None) -> list[T]:
    """Every process's value, in their order; it travels pickled, between processes of one run alone."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group)
    return values


def first_does(call: Callable[[], T]) -> T:
    """What `call` gives in the first process, in all of them; the others wait.

    Raises:
        SqatError: that of the first process, in all of them.
    """
    if count() == 1:
        return call()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = call()
        except SqatError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    value: T = outcome[0]
    return value


def in_turn(call: Callable[[], T]) -> T:
    """`call` in the first process, then in the first of each other machine, then in all others: what one leaves in a
    cache, the later ones find there, whether machines share it or not.

    Raises:
        SqatError: that of any process, in all of them.
    """
    if count() == 1:
        return call()
    mine = 0 if is_first() else 1 if local_rank() == 0 else 2
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    results: list[T] = []
    for turn in range(3):
        failure = None
        if turn == mine:
            try:
                results.append(call())
            except SqatError as error:
                failure = error
        if failure := next(filter(None, gather(failure, group)), None):
            raise failure
    dist.destroy_process_group(group)
    return results[0]


@contextmanager
def naming_loss() -> Iterator[None]:
    """What torch's collectives raise where another process is gone, or does not answer, becomes a clear error.

    Raises:
        ProcessLostError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        back_end = isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None
        if count() == 1 or isinstance(error, SqatError) or not back_end:
            raise
        said = str(error).partition("\n")[0]
        raise ProcessLostError(
            "another process of this run was killed, failed or does not answer, so all stop; checkpoints are kept: "
            f"go on with --resume ({said})"
        ) from error


def _make_group(back_end: str) -> None:
    """The group, in a corner of its own of torchrun's store.

    The store outlives the processes that torchrun starts again, and with it the addresses of those that are gone: one
    that is early would read an old address of another and find the connection refused (pytorch issue 135712). Only on
    one machine do all count restarts alike; between several, torch's own way is left as it is.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(back_end, timeout=TIMEOUT)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torch documents both, but its code does not say that they are public
    store = dist.TCPStore(address, port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"sqat/group-{restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(back_end, store=own, rank=int(os.environ["RANK"]), world_size=launched(), timeout=TIMEOUT)


def _share_cores() -> None:
    """torch's threads of this process: its share of the cores, unless the user has set another number. Launchers set 1
    where nobody has.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local_count()))
