"""The loss of uptraining: cross-entropy of the next token, and KL to a teacher's distribution (Hinton et al., arXiv
1503.02531, at temperature 1).

Shape letters: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sqat.convert.stock_decoder import StockDecoder
from sqat.data.batches import IGNORE, Batch
from sqat.train.loss import linear_cross_entropy
from sqat.train.step import Sums, TrainingLoss, named_router_stats

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
        *,
        compiled: bool = False,
    ) -> None:
        as_decoder: Any = student  # it has what the loss asks of one
        super().__init__(as_decoder, router_loss, router_loss_weight, compiled=compiled)
        self.kl_weight = kl_weight
        self._teacher = (teacher,)  # in a tuple, so that its parameters are not this module's

    def sums(self, batch: Batch) -> Sums:
        """As :meth:`TrainingLoss.sums`, and `kl`, in nats."""
        targets_N = batch.targets.flatten()
        # Padding has no target. Its token cannot tell it from text: other tokenizers have words there.
        hidden_BTD, router = self.decoder.hidden_states(
            batch.inputs, positions=batch.positions, real=batch.targets != IGNORE
        )
        hidden_ND, head = hidden_BTD.flatten(0, 1), self.decoder.head
        sums = linear_cross_entropy(hidden_ND, head.weight, head.bias, targets_N)._asdict()
        if (teacher := self._teacher[0]) is not None:
            with torch.no_grad():
                theirs_ND = teacher.hidden_states(batch.inputs, positions=batch.positions)[0].flatten(0, 1)
            sums["kl"] = linear_kl(hidden_ND, head, theirs_ND, teacher.head, targets_N != IGNORE)
        return {**sums, **named_router_stats(router)}

    def objective(self, sums: Sums) -> Tensor:
        """Cross-entropy, and the weighted KL where there is a teacher."""
        return sums["loss"] + self.kl_weight * sums["kl"] if "kl" in sums else sums["loss"]


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
