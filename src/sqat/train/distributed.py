"""Several processes (ranks) that train one model together: joining them, agreeing, sharing work, sharding parameters.

torchrun starts the processes, and :func:`join` makes them a group. With a single process nothing here communicates, and
every function returns what it would for a group of one.

A batch's rows are divided among ranks as they are among the shards of a CPU (:mod:`sqat.cpu.shards`): everything that a
rank computes is a sum over its rows, so the sums over all ranks are those of the whole batch.
"""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sqat.checkpoint.model_files import build
from sqat.data.batches import IGNORE, Batch
from sqat.errors import ConfigError, ProcessLostError, SqatError
from sqat.model import Decoder
from sqat.seeds import draw_seeds

T = TypeVar("T")

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=10)  # for a collective within a step, an evaluation or a checkpoint
PATIENCE = timedelta(days=7)  # while one rank prepares what all need, such as a tokenizer
# Messages of back ends that have lost a rank; gloo's errors have no class of their own.
_LOST = re.compile(r"gloo|nccl|ProcessGroup|Connection (closed|reset)|recvBytes|Broken pipe", re.IGNORECASE)


def launched() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarts() -> int:
    """How many times torchrun has restarted the processes (`--max-restarts`) after a failure on this machine."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def world_size() -> int:
    """The number of ranks in the group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the group, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is rank 0, which prints and writes for all."""
    return rank() == 0


def join(device: str) -> None:
    """Make the launched processes a group. Does nothing for a single process, or where the group exists.

    On GPUs each rank takes the one of its local number; on a CPU each takes its share of the cores.

    Args:
        device: `train.device`, as configured.

    Raises:
        ConfigError: one device named for all ranks, or more ranks than GPUs.
    """
    if launched() == 1 or dist.is_initialized():
        return
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device is {device!r}, but must be auto, cpu or cuda in {launched()} processes: each takes one of its own"
        )
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device != "cpu" and torch.cuda.is_available():
        if local_world_size > torch.cuda.device_count():
            raise ConfigError(
                f"{local_world_size} processes were launched here, but there are {torch.cuda.device_count()} GPUs: "
                "launch one process a GPU, or set device to cpu"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        _make_group("cpu:gloo,cuda:nccl")
    else:
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # launchers set 1 unless the user chose a number
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // local_world_size))
        _make_group("gloo")


def _make_group(back_end: str) -> None:
    """Initialise the group. On one machine, where all ranks count restarts alike, that is under a prefix of torchrun's
    store for this restart: the store keeps the addresses of dead processes (pytorch issue 135712).
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(back_end, timeout=TIMEOUT)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torch documents both classes, but does not export them for type checkers.
    store = dist.TCPStore(address, port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"sqat/group-{restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(back_end, store=own, rank=int(os.environ["RANK"]), world_size=launched(), timeout=TIMEOUT)


def leave() -> None:
    """End the group, if there is one. Every rank has to call it."""
    if world_size() > 1:
        dist.destroy_process_group()


def choose_device(device: str) -> torch.device:
    """The device of this process for a configured one; "auto" is a GPU, else Apple's, else the CPU.

    Raises:
        ConfigError: the device is not available.
    """
    kind = device.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but no GPU is available: use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device is {device!r}, but this is not available here: use auto or cpu")
    if kind == "auto" and torch.version.cuda and not torch.cuda.is_available():
        text = "this torch is built for CUDA %s, but finds no usable GPU: a driver may be missing or too old"
        logger.warning(text, torch.version.cuda)
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        return torch.device("cuda", torch.cuda.current_device())
    if kind == "mps" or (kind == "auto" and world_size() == 1 and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


# Agreeing


def agree_to_stop(at_once: bool, reason: str | None) -> tuple[bool, str | None]:
    """Whether the ranks stop, once any was asked to: (leave without an evaluation, the reason; `None` to go on)."""
    if world_size() == 1:
        return at_once, reason
    wish = torch.tensor(2 if at_once else 1 if reason else 0)
    dist.all_reduce(wish, dist.ReduceOp.MAX)
    if not wish:
        return False, None
    return bool(wish == 2), next(filter(None, gather(reason)), None)


def gather(value: T, group: Any = None) -> list[T]:
    """Every rank's value, in rank order. Values are pickled, but only travel between ranks of one run."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values


def first_does(call: Callable[[], T]) -> T:
    """Call on rank 0 while the others wait; all ranks get its result, or raise its SqatError."""
    if world_size() == 1:
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
    """Call on rank 0, then on the first rank of each other machine, then on all others: what the first ones put into a
    cache, the later ones find, whether or not machines share it. A SqatError on any rank is raised on all.
    """
    if world_size() == 1:
        return call()
    mine = 0 if is_first() else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2
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
def naming_lost_ranks() -> Iterator[None]:
    """Turn the errors of torch's collectives after a rank died or stopped answering into a ProcessLostError."""
    try:
        yield
    except RuntimeError as error:
        back_end = isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None
        if world_size() == 1 or isinstance(error, SqatError) or not back_end:
            raise
        said = str(error).partition("\n")[0]
        raise ProcessLostError(
            "another process of this run was killed, failed or does not answer, so all stop; checkpoints are kept: "
            f"go on with --resume ({said})"
        ) from error


# Sharing work


def own_rows(batch: Batch) -> Batch:
    """This rank's share of a batch: consecutive rows; where there are too few for all ranks, a row without targets
    (`counted` is 0), since all have to compute together.
    """
    rows, number, ranks = len(batch.inputs), rank(), world_size()
    if ranks == 1:
        return batch
    first, last = rows * number // ranks, rows * (number + 1) // ranks
    return _rows(batch, first, last) if first < last else without_targets(batch)


def without_targets(batch: Batch) -> Batch:
    """The first row of a batch, with nothing in it that counts."""
    row = _rows(batch, 0, 1)
    return row._replace(targets=torch.full_like(row.targets, IGNORE), counted=0)


def _rows(batch: Batch, first: int, last: int) -> Batch:
    return Batch._make(part[first:last] if isinstance(part, Tensor) else None for part in batch)


def share_out(batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """This rank's share of some batches, and whether each counts: all ranks get equally many; the last may not."""
    number, ranks = rank(), world_size()
    group: list[T] = []
    for batch in batches:
        group.append(batch)
        if len(group) == ranks:
            yield group[number], True
            group = []
    if group:
        yield (group[number], True) if number < len(group) else (group[0], False)


def sum_over_ranks(parts: Mapping[str, Tensor], *, counts: bool = True) -> dict[str, Tensor]:
    """The sums of every rank's parts, equal to the bit on all ranks. A rank that does not count adds nothing.

    Differentiable: each rank differentiates the same function of the sums by its own parts. Gradients are multiplied by
    the world size, because DDP and FSDP2 average over ranks what has to be summed here.
    """
    if world_size() == 1:
        return dict(parts)
    flat = torch.cat([part.detach().flatten().double() for part in parts.values()]) * float(counts)  # counts stay exact
    dist.all_reduce(flat)
    sums, pieces = {}, flat.split([part.numel() for part in parts.values()])
    for (name, part), piece in zip(parts.items(), pieces, strict=True):
        sums[name] = piece.view_as(part).to(part.dtype)
        if part.requires_grad:  # zero, with a gradient
            sums[name] = sums[name] + float(counts) * world_size() * (part - part.detach())
    return sums


@contextmanager
def own_draws() -> Iterator[None]:
    """Random numbers of this rank's own, seeded from the generator that all ranks have in the same state. That state
    alone belongs to the run, so any number of ranks can go on from any other.
    """
    if world_size() == 1:
        yield
        return
    seed = draw_seeds(world_size())[rank()]
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        yield


# Sharding parameters (`train.parallel: fsdp`). Checkpoints hold whole tensors, whatever the world size. DTensor's own
# methods gather and distribute them; torch.distributed.checkpoint would do the same, but takes two seconds to import.


def shard_model(model: Decoder) -> None:
    """Leave each rank its shard of every parameter (FSDP2; ZeRO stage 3, arXiv 1910.02054), layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    # About outputs of layers, which nothing here changes in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(model.embedding.weight.device.type, (world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden_states")  # what training and evaluation call
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot average


def whole(tensor: Any) -> Tensor:
    """A tensor put together from its shards, on every rank; all ranks have to call it. Others are returned as is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """This rank's shard of a whole tensor, where `like` is sharded; else the tensor."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_model(model: Decoder) -> Decoder | None:
    """The model itself, if it is not sharded; else a whole copy on the CPU on rank 0, and `None` on the others. All
    ranks have to call it.
    """
    state = model.state_dict()
    if not any(hasattr(tensor, "full_tensor") for tensor in state.values()):
        return model
    tensors = {}
    for name, tensor in state.items():
        together = whole(tensor.detach())
        if is_first():
            tensors[name] = together.cpu().contiguous()
    return build(model.config, tensors) if tensors else None


def load_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors, by name, into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in tensors.items()})
