"""Losses and gradients that are no numbers: such a step is skipped and counted, and too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sqat.data.batches import BatchState
from sqat.errors import StorageError, TrainingError
from sqat.train.bad_batch import FOLDER, save_bad_batch

if TYPE_CHECKING:
    from sqat.train.loop import Trainer
    from sqat.train.step import StepSums

logger = logging.getLogger(__name__)


def not_finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """1.0 where one of two scalars is no finite number, on any process, else 0.0: a float32 scalar on their device."""
    found = (~(loss.isfinite() & grad_norm.isfinite())).float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A loss is a process' own. If one skipped a step and another did not, they would train different models.
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found


def waits(tensor: Tensor) -> bool:
    """Whether reading it waits for a device that still computes."""
    return tensor.is_cuda


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer, unless `skipped` is 1.0: then weights and state stay as they are.

    A fused optimizer on a GPU is told by a tensor, as torch.amp.GradScaler does, and nothing is waited for. With others
    a GPU is.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
    if waits(skipped) and getattr(inner, "_step_supports_amp_scaling", False):
        inner.found_inf = skipped
        try:
            optimizer.step()
        finally:
            del inner.found_inf
    elif not skipped:
        optimizer.step()


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise a TrainingError where weights are no longer numbers, which are not worth keeping."""
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise TrainingError(f"the weights are not finite after step {step}; earlier checkpoints are kept")


class _Step(NamedTuple):
    """A step whose verdict is still on the device."""

    number: int
    before: BatchState  # where its batch starts
    sums: StepSums


class SkippedSteps:
    """Counts a trainer's skipped steps in its state, keeps their batches for inspection, and ends the run after
    `max_skipped_steps` in a row.

    On a CPU every step's verdict is read at once; on a GPU, where that would wait, with :meth:`settle`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.too_many: str | None = None  # why the run ends
        self._unread: list[_Step] = []

    def add(self, before: BatchState, sums: StepSums) -> None:
        """Take the step that was just done."""
        self._unread.append(_Step(self.trainer.state.step, before, sums))
        if not waits(sums.skipped):
            self.settle()

    def settle(self) -> None:
        """Bring the state up to date, for which a GPU is waited for. Too many skipped steps in a row interrupt the
        run.
        """
        state, limit = self.trainer.state, self.trainer.config.max_skipped_steps
        for step, skipped in self._verdicts():
            if not skipped:
                state.skipped_in_a_row = 0
                continue
            state.skipped_steps += 1
            state.skipped_in_a_row += 1
            found = f"loss {step.sums.loss / step.sums.targets:.4g}, gradient norm {step.sums.grad_norm:.4g}"
            saved = save_bad_batch(self.trainer, step.number, step.before, step.sums)
            where = "" if saved is None else f"; its batch is in {saved}"
            logger.warning("step %d is skipped: %s%s", step.number, found, where)
            if state.skipped_in_a_row >= limit and self.too_many is None:
                self.too_many = (
                    f"the last {state.skipped_in_a_row} steps, up to step {step.number}, had no finite loss or "
                    f"gradient (now {found}) and were skipped"
                )
                self.trainer.interrupt("too many skipped steps in a row")

    def finish(self) -> None:
        """When no more steps come: nothing, unless too many were skipped. Then a checkpoint is saved, unless weights
        are no numbers: skipped steps have left them as they were.

        Raises:
            TrainingError: too many were skipped.
        """
        self.settle()
        if self.too_many is None:
            return
        try:
            saved = self.trainer.save()
            kept = "" if saved is None else f"{saved} is saved, and --resume goes on from it with the next batch; "
        except (StorageError, TrainingError) as error:
            kept = f"{error}; "
        raise TrainingError(
            f"{self.too_many}: the run ends. {kept}the batches are in the run's folder {FOLDER}. A lower "
            f"train.learning_rate or some train.warmup_steps may help; train.max_skipped_steps "
            f"({self.trainer.config.max_skipped_steps}) is how many in a row are too many"
        )

    def _verdicts(self) -> Iterator[tuple[_Step, bool]]:
        steps, self._unread = self._unread, []
        if steps:
            verdicts = torch.stack([step.sums.skipped for step in steps]).tolist()
            yield from zip(steps, map(bool, verdicts), strict=True)
