"""One optimisation step: forward and backward over the micro-batches, clip, update unless something is NaN or Inf."""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sqat.data.batches import Batch
from sqat.data.tokenizer import PAD
from sqat.errors import TrainingError
from sqat.model import Decoder
from sqat.model.moe import RouterStats
from sqat.train.distributed import own_draws, sum_over_ranks, whole, world_size
from sqat.train.loss import linear_cross_entropy, router_loss

Sums = dict[str, Tensor]
"""What a batch adds up to, by name, so that the sums of several batches, shards or ranks can be added.

Always there: `loss` (cross-entropy in nats), `correct` (targets that were the likeliest token), `targets` (how many).
With experts: every field of :class:`sqat.model.moe.RouterStats`, stacked over layers, as `router.load_E` (L, E).
Any other scalar, such as the `kl` of distillation, is a sum over targets too, and logged as a mean.
"""

ROUTER = "router."

try:
    from sqat.cpu import allocator, threads
    from sqat.cpu import shards as cpu_shards
except ImportError:  # without cpu/, a batch is one shard and malloc keeps its defaults: slower, no less right
    allocator = cpu_shards = threads = None  # type: ignore[assignment]


def keep_freed_memory() -> None:
    """Keep freed memory in the process, which is faster on CPUs."""
    if allocator is not None:
        allocator.keep_freed_memory()


def suitable_shards(model: Decoder) -> int:
    """How many shards of a batch pay off in training this model."""
    return 1 if cpu_shards is None else cpu_shards.suitable_shards(model)


class TrainingLoss(nn.Module):
    """Decoder and loss as one module with a single forward pass, which DDP and autocast can wrap.

    A subclass with another objective overrides `sums` and `objective`.

    Args:
        decoder: the model.
        router_loss: "balanced", "rxnn" or "none"; see :func:`sqat.train.loss.router_loss`.
        router_loss_weight: its weight beside the cross-entropy.
        shards: the number of shards of a batch on a CPU, see :mod:`sqat.cpu.shards`.
        compiled: run `sums` through `torch.compile`.
    """

    def __init__(
        self,
        decoder: Decoder,
        router_loss: str = "balanced",
        router_loss_weight: float = 0.01,
        *,
        shards: int = 1,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.router_loss = router_loss
        self.router_loss_weight = router_loss_weight
        self._several = world_size() > 1  # looked up here, since a compiler cannot
        self._compute: Callable[[Batch], Sums] = self.sums
        if compiled:  # a shape is a graph: an epoch has two, because of its last batch
            self._compute = torch.compile(self.sums, dynamic=False)
        elif shards > 1:
            self._compute = cpu_shards.Shards(self.sums, list(decoder.parameters()), shards)

    def forward(self, batch: Batch, total_targets: Tensor | int, share: float) -> tuple[Tensor, Sums]:
        """One micro-batch's part of a step's loss, to differentiate, and the sums of the whole micro-batch, detached;
        among them `router_loss`, the unweighted router loss times `share`.

        Args:
            batch: the micro-batch, or this rank's rows of it.
            total_targets: targets in the whole step, by which the cross-entropy is divided: all weigh the same.
            share: the micro-batch's share in the router loss, which is a mean over micro-batches.
        """
        sums = self._compute(batch)
        if self._several:
            sums = sum_over_ranks(sums, counts=batch.counted != 0)
        loss = self.objective(sums) / total_targets
        auxiliary = loss.new_zeros(())
        if self.router_loss != "none" and (layers := router_stats(sums)):
            auxiliary = share * router_loss(layers, self.router_loss)
            loss = loss + self.router_loss_weight * auxiliary
        return loss, {name: part.detach() for name, part in {**sums, "router_loss": auxiliary}.items()}

    def sums(self, batch: Batch) -> Sums:
        """What the batch's rows add up to. `loss` and the router's probabilities are differentiable."""
        # The original routes and counts padding like any token.
        real = None if self.router_loss == "rxnn" else batch.inputs != PAD
        hidden_BTD, router = self.decoder.hidden_states(
            batch.inputs, positions=batch.positions, documents=batch.documents, real=real
        )
        head = self.decoder.head
        sums = linear_cross_entropy(hidden_BTD.flatten(0, 1), head.weight, head.bias, batch.targets.flatten())
        return {**sums._asdict(), **named_router_stats(router)}

    def objective(self, sums: Sums) -> Tensor:
        """The quantity to minimise, summed over targets, without the router loss."""
        return sums["loss"]


def named_router_stats(router: Sequence[RouterStats]) -> Sums:
    """The statistics of all layers by name, stacked: (L, E) or (L,). Empty without experts."""
    fields = zip(*router, strict=True) if router else ()
    return {ROUTER + name: torch.stack(part) for name, part in zip(RouterStats._fields, fields, strict=False)}


def router_stats(sums: Mapping[str, Tensor]) -> list[RouterStats]:
    """The statistics of each layer, from what :func:`named_router_stats` gave."""
    if ROUTER + RouterStats._fields[0] not in sums:
        return []
    return [RouterStats(*layer) for layer in zip(*(sums[ROUTER + name] for name in RouterStats._fields), strict=True)]


def train_step(
    task: nn.Module,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    total_targets: Tensor | int,
    clip_norm: float | None = None,
    accumulating: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Sums:
    """Run one step. Micro-batches count as one batch: their cross-entropy is divided by all their targets together.

    The router loss is taken per micro-batch and averaged (it is not additive over tokens). A loss or gradient that is
    NaN or Inf changes neither weights nor optimizer state; no GPU is waited for to find out.

    Args:
        task: a :class:`TrainingLoss`, wrapped or not.
        total_targets: targets in all micro-batches, of all ranks.
        clip_norm: the gradient norm to clip at; `None` for no clipping.
        accumulating: the context of all micro-batches but the last, in which gradients need not be summed over ranks.

    Returns:
        the step's sums, and `grad_norm` before clipping, and `skipped`: 1.0 where nothing was updated, else 0.0. They
        are tensors; reading them waits for the device.
    """
    parts = []
    for batch in micro_batches:
        with nullcontext() if batch is micro_batches[-1] else accumulating(), own_draws():
            loss, sums = task(batch, total_targets, 1.0 / len(micro_batches))
            loss.backward()
        parts.append(sums)
    limit = math.inf if clip_norm is None else clip_norm
    grad_norm = whole(nn.utils.clip_grad_norm_(task.parameters(), limit))
    sums = parts[0] if len(parts) == 1 else {name: torch.stack([p[name] for p in parts]).sum(dim=0) for name in sums}
    skipped = not_finite(sums["loss"], grad_norm)
    step_unless(skipped, optimizer)
    optimizer.zero_grad()
    return {**sums, "grad_norm": grad_norm, "skipped": skipped}


def not_finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """1.0 where either scalar is NaN or Inf on any rank, else 0.0: a float32 scalar on their device."""
    found = (~(loss.isfinite() & grad_norm.isfinite())).float()
    if world_size() > 1:  # if one rank skipped a step and another did not, they would train different models
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found


def waits(tensor: Tensor) -> bool:
    """Whether reading the tensor waits for a device that still computes."""
    return tensor.is_cuda


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step the optimizer, unless `skipped` is 1.0: then weights and state stay as they are.

    A fused optimizer on a GPU is told by a tensor, as torch.amp.GradScaler does, without waiting. Others wait.
    """
    if waits(skipped) and getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = skipped  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif not skipped:
        optimizer.step()


def use_bf16(precision: str, device: str) -> bool:
    """Whether a configured precision means bfloat16 on a device; "auto" does where the hardware multiplies it."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu" and platform.machine() in ("x86_64", "AMD64"):  # where oneDNN's answer counts emulation
        return torch.cpu._is_avx512_bf16_supported()
    return device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def kernels_in_use(compiled: bool, device: str) -> str:
    """Which code computes a step, in words."""
    if compiled:
        return "torch.compile"
    return (
        "own kernels"
        if device == "cuda" or (device == "cpu" and threads is not None and threads.available())
        else "plain torch"
    )


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The autocast context for a configured precision on a device."""
    return torch.autocast(device, dtype=torch.bfloat16) if use_bf16(precision, device) else nullcontext()


@contextmanager
def explain_out_of_memory(doing: str, batch_size: int, *, training: bool = False) -> Iterator[None]:
    """Turn torch's out-of-memory error in `doing` something, such as "step 7", into a TrainingError that says what to
    try.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = "a smaller one"
        if training:
            advice += (
                ", with more gradient_accumulation, so that a step keeps its rows; or gradient_checkpointing true, "
            )
            advice += "which computes part of the forward pass twice. A run that has begun takes these with --resume"
        problem = f"the GPU's memory is not enough for {doing} with a batch_size of {batch_size}"
        raise TrainingError(f"{problem}: try {advice}") from error
