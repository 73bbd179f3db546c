"""Each process's share of a batch or of an evaluation, and the sums over all shares.

Rows are cut among processes as they are cut among shards (:mod:`sqat.cpu.shards`), and for the same reason: all that
a share gives is a sum over its rows, so the sums over all shares are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sqat.data.batches import IGNORE, Batch
from sqat.seeds import draw_seeds
from sqat.train.distributed import count, rank

T = TypeVar("T")


def own_rows(batch: Batch) -> Batch:
    """This process's share of a batch: consecutive rows, at most one more or fewer than another's.

    Where there are fewer rows than processes, some get one without targets, `counted` as 0: they compute together.
    """
    rows, number, processes = len(batch.inputs), rank(), count()
    if processes == 1:
        return batch
    first, last = rows * number // processes, rows * (number + 1) // processes
    if first == last:
        return idle(batch)
    return _rows(batch, first, last)


def idle(batch: Batch) -> Batch:
    """One row of a batch, with nothing in it to count."""
    row = _rows(batch, 0, 1)
    return row._replace(targets=torch.full_like(row.targets, IGNORE), counted=0)


def _rows(batch: Batch, first: int, last: int) -> Batch:
    def part(of: Tensor | None) -> Any:
        return None if of is None else of[first:last]

    return Batch(part(batch.inputs), part(batch.targets), part(batch.positions), part(batch.documents))


def sum_over_processes(parts: Sequence[Tensor], *, counts: bool = True) -> tuple[Tensor, ...]:
    """The sums of each process's parts, the same to the bit in all; parts of one that does not count are left out.

    Differentiable: each process differentiates the same function of the sums by its own parts, so gradients of
    parameters add up to those of the whole.
    """
    if count() == 1:
        return tuple(parts)
    sums: tuple[Tensor, ...] = _Sum.apply(float(counts), *parts)
    return sums


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: float, *parts: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([part.detach().flatten().double() for part in parts]) * weight  # counts stay exact
        dist.all_reduce(flat)
        pieces = flat.split([part.numel() for part in parts])
        sums = [piece.view_as(part).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)]
        ctx.weight = weight
        ctx.mark_non_differentiable(*[total for total, part in zip(sums, parts, strict=True) if not part.requires_grad])
        return tuple(sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        return None, *(grad * ctx.weight if need else None for need, grad in zip(needed, grads, strict=True))


@contextmanager
def own_draws() -> Iterator[None]:
    """Random numbers of this process's own, whose seed is drawn from the generator that all have in the same state.

    That state alone is the run's, and goes on from any number of processes with any other. Dropout masks differ with
    the number, as they do with that of shards.
    """
    if count() == 1:
        yield
        return
    seed = draw_seeds(count())[rank()]
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed)
        yield


def share_out(batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """This process's share of some batches, and whether each counts.

    All processes get equally many, since they may have to compute together; what fills up does not count.
    """
    number, processes = rank(), count()
    group: list[T] = []
    for batch in batches:
        group.append(batch)
        if len(group) == processes:
            yield group[number], True
            group = []
    if group:
        yield (group[number], True) if number < len(group) else (group[0], False)
