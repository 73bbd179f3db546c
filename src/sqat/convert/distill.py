"""The loss of uptraining: cross-entropy of the next token, and KL to a teacher's distribution (Hinton et al., arXiv
1503.02531, at temperature 1).

Shape letters: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sqat.convert.stock_decoder import StockDecoder
from sqat.data.batches import IGNORE, Batch
from sqat.model.moe import RouterStats
from sqat.train.callbacks import Callback
from sqat.train.loss import LossSums, linear_cross_entropy
from sqat.train.share import sum_over_processes
from sqat.train.step import TrainingLoss

CHUNK_ROWS = 1024  # whose logits, of both models, exist at once


class DistillationLoss(TrainingLoss):
    """As :class:`TrainingLoss`, plus `kl_weight` times KL(teacher ‖ student), nats, mean over the same targets.

    Args:
        student: the model that is trained.
        teacher: of the same vocabulary; it is no part of this module, is not trained, and has to be on the student's
            device. `None` leaves cross-entropy alone.
    """

    def __init__(
        self,
        student: StockDecoder,
        teacher: StockDecoder | None,
        kl_weight: float,
        router_loss: str = "balanced",
        router_loss_weight: float = 0.01,
    ) -> None:
        as_decoder: Any = student  # it has what the loss asks of one
        super().__init__(as_decoder, router_loss, router_loss_weight)
        self.kl_weight = kl_weight
        self._teacher = (teacher,)  # in a tuple, so that its parameters are not this module's
        self._kl: Tensor | None = None
        self.seen: list[tuple[Tensor, Tensor]] = []  # KL and targets since they were last read

    def forward(
        self, batch: Batch, total_targets: Tensor | int, share: float
    ) -> tuple[Tensor, LossSums, Tensor, tuple[RouterStats, ...]]:
        loss, sums, auxiliary, router = super().forward(batch, total_targets, share)
        if self._kl is not None:
            (kl,) = sum_over_processes([self._kl], counts=batch.counted != 0)
            loss = loss + self.kl_weight * kl / total_targets
            self.seen.append((kl.detach(), sums.targets))
            self._kl = None
        return loss, sums, auxiliary, router

    def _sums(self, batch: Batch) -> tuple[Tensor, ...]:
        targets_N = batch.targets.flatten()
        # Padding has no target. Which token it is cannot tell it from text: other tokenizers have words there.
        hidden_BTD, router = self.decoder.hidden_states(
            batch.inputs, positions=batch.positions, real=batch.targets != IGNORE
        )
        hidden_ND, head = hidden_BTD.flatten(0, 1), self.decoder.head
        sums = linear_cross_entropy(hidden_ND, head.weight, head.bias, targets_N)
        if (teacher := self._teacher[0]) is not None:
            with torch.no_grad():
                theirs_ND = teacher.hidden_states(batch.inputs, positions=batch.positions)[0].flatten(0, 1)
            self._kl = linear_kl(hidden_ND, head, theirs_ND, teacher.head, targets_N != IGNORE)
        return *sums, *chain.from_iterable(router)


def linear_kl(hidden_ND: Tensor, head: Any, theirs_ND: Tensor, their_head: Any, wanted_N: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, summed over the wanted rows; differentiable by the student's hidden states and
    head.

    Logits exist for some rows at a time, and are computed again in the backward pass.
    """
    total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    for rows in wanted_N.nonzero().squeeze(1).split(CHUNK_ROWS):
        total = total + checkpoint(
            _kl, hidden_ND[rows], head.weight, head.bias, theirs_ND[rows], their_head, use_reentrant=False
        )
    return total


def _kl(hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, theirs_RD: Tensor, their_head: Any) -> Tensor:
    with torch.no_grad():
        teacher_RV = their_head(theirs_RD).float().log_softmax(dim=-1)
    student_RV = F.linear(hidden_RD, weight_VD, bias_V).float().log_softmax(dim=-1)
    return F.kl_div(student_RV, teacher_RV, reduction="sum", log_target=True)


class KlMetric(Callback):
    """Adds the mean KL since the last log line to the metrics; to stand before the logs."""

    everywhere = True  # what the task has seen is to be forgotten in all processes

    def __init__(self) -> None:
        self.task: DistillationLoss | None = None

    def tensors(self) -> dict[str, Tensor]:
        """KL and targets since the last log line, for a checkpoint."""
        if self.task is None or not self.task.seen:
            return {}
        kl, targets = (torch.stack(part) for part in zip(*self.task.seen, strict=True))
        return {"kl": kl, "kl_targets": targets}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on after what :meth:`tensors` gave."""
        if self.task is not None and "kl" in tensors:
            kl, targets = (tensors[name].to(device).unbind() for name in ("kl", "kl_targets"))
            self.task.seen = list(zip(kl, targets, strict=True))

    def on_log(self, trainer: Any, metrics: dict[str, Any]) -> None:
        if self.task is not None and self.task.seen:
            kl, targets = (torch.stack(part) for part in zip(*self.task.seen, strict=True))
            counted = kl.isfinite()  # others are of skipped steps
            metrics["kl"] = (kl[counted].sum() / targets[counted].sum()).item()
            self.task.seen.clear()
