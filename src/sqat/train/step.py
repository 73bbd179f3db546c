"""One optimisation step: forward and backward over the micro-batches, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sqat.cpu.shards import Shards
from sqat.data.batches import Batch
from sqat.data.tokenizer import PAD
from sqat.model import Decoder
from sqat.model.moe import RouterStats
from sqat.train.distributed import count
from sqat.train.finite import not_finite, step_unless
from sqat.train.loss import LossSums, linear_cross_entropy, router_loss
from sqat.train.share import own_draws, sum_over_processes


class StepSums(NamedTuple):
    """What a step saw, as tensors (reading them waits for the device): sums over its real targets, and router
    statistics per layer.
    """

    loss: Tensor  # cross-entropy, nats
    correct: Tensor
    targets: Tensor
    router_loss: Tensor  # mean over micro-batches, unweighted
    router: tuple[RouterStats, ...]
    grad_norm: Tensor  # before clipping
    skipped: Tensor  # 1.0 where loss or gradient is no finite number, and so nothing was updated; else 0.0


class TrainingLoss(nn.Module):
    """Decoder and loss as one module, so that engines which wrap modules (DDP, FSDP, autocast) see a single forward
    pass.
    """

    def __init__(
        self, decoder: Decoder, router_loss: str = "balanced", router_loss_weight: float = 0.01, *, shards: int = 1
    ) -> None:
        """`shards`: into how many a batch may be cut (see :mod:`sqat.cpu.shards`)."""
        super().__init__()
        self.decoder = decoder
        self.router_loss = router_loss
        self.router_loss_weight = router_loss_weight
        self.several = count() > 1  # settled here, for a compiler cannot look it up
        self.sums = Shards(self._sums, list(decoder.parameters()), shards) if shards > 1 else self._sums

    def forward(
        self, batch: Batch, total_targets: Tensor | int, share: float
    ) -> tuple[Tensor, LossSums, Tensor, tuple[RouterStats, ...]]:
        """The part of a step's loss that one micro-batch makes up.

        Args:
            batch: the micro-batch, or this process's rows of it.
            total_targets: targets in the whole step, by which the cross-entropy is divided, so that every target weighs
                the same.
            share: the micro-batch's share in the router loss.

        Returns:
            the loss to differentiate, the sums, the unweighted router loss, router statistics: those of the whole
            micro-batch, in every process that has rows of it.
        """
        parts = self.sums(batch)
        if self.several:
            parts = sum_over_processes(parts, counts=batch.counted != 0)
        sums = LossSums._make(parts[:3])
        router = by_layer(parts[3:])
        loss = sums.loss / total_targets
        auxiliary = loss.new_zeros(())
        if router and self.router_loss != "none":
            auxiliary = router_loss(router, self.router_loss)
            loss = loss + self.router_loss_weight * share * auxiliary
        return loss, sums, auxiliary.detach(), tuple(RouterStats(*(x.detach() for x in layer)) for layer in router)

    def _sums(self, batch: Batch) -> tuple[Tensor, ...]:
        """What adds up over rows: the fields of :class:`LossSums`, and those of each layer's :class:`RouterStats`."""
        # The original routes and counts padding like any token.
        real = None if self.router_loss == "card" else batch.inputs != PAD
        hidden_BTD, router = self.decoder.hidden_states(
            batch.inputs, positions=batch.positions, documents=batch.documents, real=real
        )
        head = self.decoder.head
        sums = linear_cross_entropy(hidden_BTD.flatten(0, 1), head.weight, head.bias, batch.targets.flatten())
        return *sums, *chain.from_iterable(router)


def train_step(
    task: nn.Module,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    total_targets: Tensor | int,
    backward: Callable[[Tensor], None],
    clip: Callable[[], Tensor],
    accumulating: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> StepSums:
    """Run one step. The micro-batches count as one batch: their cross-entropy is divided by all their targets together.

    The router loss is taken per micro-batch and averaged (it is not additive over tokens). A loss or gradient that is
    no finite number changes neither weights nor the optimizer's state; no GPU is waited for to see it.

    Args:
        task: a :class:`TrainingLoss`, wrapped or not.
        total_targets: targets in all micro-batches.
        backward, clip: the engine's; `clip` returns the gradient norm before clipping.
        accumulating: the engine's context for all micro-batches but the last, whose gradients it need not yet add up
            over processes.
    """
    share = 1.0 / len(micro_batches)
    losses, auxiliaries, routers = [], [], []
    for batch in micro_batches:
        with nullcontext() if batch is micro_batches[-1] else accumulating(), own_draws():
            loss, sums, auxiliary, router = task(batch, total_targets, share)
            backward(loss)
        losses.append(LossSums(sums.loss.detach(), sums.correct, sums.targets))
        auxiliaries.append(auxiliary)
        routers.append(router)
    grad_norm = clip()
    loss_sum, correct, targets = (torch.stack(part).sum() for part in zip(*losses, strict=True))
    skipped = not_finite(loss_sum, grad_norm)
    step_unless(skipped, optimizer)
    optimizer.zero_grad()
    auxiliary, router = torch.stack(auxiliaries).mean(), add_router_stats(routers)
    return StepSums(loss_sum, correct, targets, auxiliary, router, grad_norm, skipped)


def by_layer(parts: Sequence[Tensor]) -> tuple[RouterStats, ...]:
    """The fields of every layer's statistics, one after the other, as statistics again."""
    size = len(RouterStats._fields)
    return tuple(RouterStats._make(parts[i : i + size]) for i in range(0, len(parts), size))


def add_router_stats(batches: Sequence[tuple[RouterStats, ...]]) -> tuple[RouterStats, ...]:
    """Layer by layer, the sums over several batches."""
    layers = zip(*batches, strict=True)
    return tuple(RouterStats(*(torch.stack(part).sum(dim=0) for part in zip(*layer, strict=True))) for layer in layers)
