"""A batch cut into shards, each computed in a thread of its own.

Every CPU operator of torch divides its work among all threads, which then have to meet before the next one starts. A
training step has thousands of short operators. Shards run forward and backward in one thread each, and meet twice a
step.

Shapes: B rows of a batch, B/n of a shard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from sqat.data.batches import Batch
from sqat.model import Decoder
from sqat.model.dispatch import once_differentiable
from sqat.seeds import draw_seeds, drawing_from

Compute = Callable[[Batch], dict[str, Tensor]]
MOST = 4  # Python runs in one thread at a time: more shards would wait for each other
SHARD_TOKENS = 1024  # a shard has at least this many


def suitable_shards(model: Decoder) -> int:
    """How many shards pay off in training a model: on a CPU one a thread, at most `MOST`; elsewhere one.

    Also one where torch itself draws random numbers (attention's dropout) or resets its generator (gradient
    checkpointing): all threads share that generator, so a run would not be the same twice.
    """
    on_cpu = model.embedding.weight.device.type == "cpu"
    if not on_cpu or model.config.attention_dropout or model.gradient_checkpointing:
        return 1
    return min(torch.get_num_threads(), MOST)


class Shards:
    """Computes a batch in at most `count` shards side by side.

    `compute` reads `parameters`, draws random numbers only by :func:`sqat.seeds.draw_seeds`, and returns, by name, sums
    over a batch's rows.
    """

    def __init__(self, compute: Compute, parameters: Sequence[Tensor], count: int) -> None:
        self.compute = compute
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="shard")

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """What `compute` returns for the batch, differentiable by the parameters, once."""
        count = min(self.count, len(batch.inputs), batch.inputs.numel() // SHARD_TOKENS)
        if count <= 1 or not torch.is_grad_enabled():
            return self.compute(batch)
        parts = self.forward(_cut(batch, count))
        sums = _Sharded.apply(self, [tuple(part.values()) for part in parts], *self.parameters)
        return dict(zip(parts[0], sums, strict=True))

    def forward(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """What `compute` returns for each batch, with its graph."""
        device = batches[0].inputs.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def compute(batch: Batch, seed: int) -> dict[str, Tensor]:
            # Without a cache: all threads would share it.
            with (
                drawing_from(torch.Generator().manual_seed(seed)),
                torch.enable_grad(),
                torch.autocast(device, enabled=autocast[0], dtype=autocast[1], cache_enabled=False),
            ):
                return self.compute(batch)

        return self._side_by_side(compute, batches, draw_seeds(len(batches)))

    def backward(self, parts: Sequence[tuple[Tensor, ...]], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The parameters' gradients, summed over the shards in their order."""

        def differentiate(outputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
            wanted = [(y, grad) for y, grad in zip(outputs, grads, strict=True) if y.requires_grad and grad is not None]
            ends, grad_ends = zip(*wanted, strict=True)
            return torch.autograd.grad(ends, self.parameters, grad_ends, allow_unused=True)

        def add(shares: Sequence[Tensor | None]) -> Tensor | None:
            present = [share for share in shares if share is not None]
            return functools.reduce(Tensor.add_, present) if present else None  # nothing else refers to the first

        return [add(shares) for shares in zip(*self._side_by_side(differentiate, parts), strict=True)]

    def _side_by_side(self, call: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """`map` in our threads, each with its share of torch's; the first error is raised when all have ended."""
        total = torch.get_num_threads()
        each = max(1, total // len(arguments[0]))

        def run(*own: Any) -> Any:
            torch.set_num_threads(each)
            return call(*own)

        futures = [self._threads.submit(run, *own) for own in zip(*arguments, strict=True)]
        wait(futures)
        torch.set_num_threads(total)  # it is also what threads that torch starts later go by
        return [future.result() for future in futures]


class _Sharded(torch.autograd.Function):
    """The sums over shards, as one differentiable function of the parameters."""

    @staticmethod
    def forward(ctx: Any, shards: Shards, parts: list[tuple[Tensor, ...]], *_: Tensor) -> tuple[Tensor, ...]:
        ctx.shards, ctx.parts = shards, parts
        sums = [torch.stack([y.detach() for y in same]).sum(dim=0) for same in zip(*parts, strict=True)]
        ctx.mark_non_differentiable(*[total for total, y in zip(sums, parts[0], strict=True) if not y.requires_grad])
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        parts, ctx.parts = ctx.parts, None  # the graphs go with them
        return None, None, *ctx.shards.backward(parts, grads)


def _cut(batch: Batch, count: int) -> list[Batch]:
    columns = [
        repeat(None, count) if part is None else part.tensor_split(count)
        for part in (batch.inputs, batch.targets, batch.positions, batch.documents)
    ]
    return [Batch(*parts) for parts in zip(*columns, strict=True)]
