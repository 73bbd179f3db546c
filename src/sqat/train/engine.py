"""What computes a run's steps: model, task and optimizer on their device, in one process or several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sqat.cpu.allocator import keep_freed_memory
from sqat.data.batches import Batches
from sqat.errors import ConfigError
from sqat.model import Decoder
from sqat.run_config import TrainConfig
from sqat.train import distributed
from sqat.train.device import make_accelerator, use_bf16
from sqat.train.feed import StepData
from sqat.train.optim import make_optimizer, set_learning_rate
from sqat.train.parallel import cut_model, whole
from sqat.train.share import idle, own_draws
from sqat.train.step import StepSums, train_step


class Engine:
    """Accelerate, and around it what it leaves to the user.

    In several processes each has a share of a batch's rows, and a whole model whose gradients are averaged (DDP) or a
    part of one (FSDP2, see :mod:`sqat.train.parallel`).

    Args:
        model: placed on its device, and cut among the processes where the configuration says so. All processes must
            have the same, and torch's random generator in the same state.

    Raises:
        ConfigError: a device that is not there, or settings that do not go with several processes.
    """

    def __init__(self, model: Decoder, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        distributed.join(config.device)
        check_for_processes(model, config)
        self.accelerator = make_accelerator(config.device)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        model.gradient_checkpointing = config.gradient_checkpointing
        model.to(self.accelerator.device)
        self.cut = distributed.count() > 1 and config.parallel == "fsdp"
        if self.cut:
            cut_model(model)

    def prepare(self, task: Any) -> None:
        """Take the task, as :class:`sqat.train.step.TrainingLoss`, whose steps are to be computed."""
        compiled = self.config.compile
        several = distributed.count() > 1
        if compiled and several:  # but not what is added up over processes
            task.sums = torch.compile(task.sums, dynamic=False)
        optimizer: Any = make_optimizer(self.model, self.config)
        self.task, self.optimizer = (task, optimizer) if self.cut else self.accelerator.prepare(task, optimizer)
        if compiled and not several:
            self.task = torch.compile(self.task, dynamic=False)  # a shape is a graph: an epoch has two, by its last

    def step(self, data: StepData, rate: float) -> StepSums:
        """One optimisation step at a learning rate."""
        self.model.train()
        set_learning_rate(self.optimizer.param_groups, rate)
        with self.autocast():
            return train_step(
                self.task,
                data.micro_batches,
                self.optimizer,
                total_targets=torch.full((), max(data.targets, 1), device=self.accelerator.device),
                backward=self._backward,
                clip=self._clip,
                accumulating=self._accumulating,
            )

    def rehearse(self, batches: Batches) -> None:
        """Run forward and backward over a row that counts for nothing; to call before the first step.

        DDP lays out its buckets by the order in which gradients first come, and sums of more than two numbers depend on
        the layout. Now it is the same in a run that is resumed as in one that was not.
        """
        if distributed.count() == 1 or self.cut:
            return
        self.model.train()
        row = idle(batches.batch(0, 0)).to(self.accelerator.device)
        with torch.random.fork_rng(devices=[]), self.autocast(), own_draws():
            loss, *_ = self.task(row, 1, 0.0)
            self._backward(loss)
        self.optimizer.zero_grad()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the model computes in."""
        device = self.accelerator.device.type
        if use_bf16(self.config.precision, device):
            return torch.autocast(device, dtype=torch.bfloat16)
        return nullcontext()

    def _backward(self, loss: Tensor) -> None:
        processes = distributed.count()  # DDP and FSDP2 average over them what is to be summed
        self.accelerator.backward(loss if processes == 1 else loss * processes)

    def _clip(self) -> Tensor:
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        return whole(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        if not self.cut:
            with self.accelerator.no_sync(self.task):
                yield
            return
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def check_for_processes(model: nn.Module, config: TrainConfig) -> None:
    """Raise a ConfigError for what cannot be done in several processes."""
    processes = distributed.count()
    if processes == 1:
        return
    if config.batch_size < processes:
        raise ConfigError(
            f"batch_size is {config.batch_size}, but must be at least {processes}, the number of processes, each of "
            "which takes a share of its rows"
        )
    if config.parallel == "fsdp":
        if config.compile:
            raise ConfigError('compile is true, but must be false where parallel is "fsdp"')
        if not isinstance(model, Decoder):
            raise ConfigError('parallel is "fsdp", but must be "ddp" for models other than this package\'s own')
