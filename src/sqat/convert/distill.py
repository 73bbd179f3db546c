"""A stock model as training sees one, and the loss of uptraining: cross-entropy of the next token, and KL to a
teacher's distribution (Hinton et al., arXiv 1503.02531, at temperature 1).

Shape letters: B rows, T tokens, D hidden size, V vocabulary, N tokens of all rows, R some of them, E experts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sqat.data.batches import IGNORE, Batch
from sqat.model.moe import RouterStats, router_stats
from sqat.train.loss import linear_cross_entropy
from sqat.train.step import Sums, TrainingLoss, named_router_stats

CHUNK_ROWS = 1024  # whose logits, of both models, exist at once


class StockView(NamedTuple):
    """The fields of a configuration that training and evaluation ask for."""

    vocab_size: int
    context_length: int
    attention_dropout: float


class StockDecoder(nn.Module):
    """A causal language model of `transformers` with the interface of :class:`sqat.model.Decoder`, as far as training
    and evaluation use it.

    Args:
        model: the model; it is used as it is, not copied.
        context_length: tokens of a row in training and evaluation.
    """

    def __init__(self, model: PreTrainedModel, context_length: int) -> None:
        super().__init__()
        self.model = model
        self._gradient_checkpointing = False
        dropout = float(getattr(model.config, "attention_dropout", 0.0))
        self.config = StockView(model.config.vocab_size, context_length, dropout)

    @property
    def embedding(self) -> Any:
        """The token embedding."""
        return self.model.get_input_embeddings()

    @property
    def head(self) -> Any:
        """The linear layer from hidden states to logits."""
        return self.model.get_output_embeddings()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass, to save memory."""
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, wanted: bool) -> None:
        if wanted != self._gradient_checkpointing:
            verb = "enable" if wanted else "disable"
            method = getattr(self.model, f"activation_checkpointing_{verb}", None)  # its name before transformers 5.23:
            (method or getattr(self.model, f"gradient_checkpointing_{verb}"))()
            self._gradient_checkpointing = wanted

    def hidden_states(
        self,
        inputs_BT: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        real: Tensor | None = None,
    ) -> tuple[Tensor, tuple[RouterStats, ...]]:
        """As :meth:`sqat.model.Decoder.hidden_states`, which has statistics for no layer of a dense model. `documents`
        are not used: transformers tells them apart by their positions.
        """
        experts = getattr(self.model.config, "num_experts_per_tok", None)
        wanted = {"output_router_logits": True} if experts else {}
        # Without a cache: with one, transformers does not look for documents.
        output = self.model.get_decoder()(input_ids=inputs_BT, position_ids=positions, use_cache=False, **wanted)
        if not experts:
            return output.last_hidden_state, ()
        real_N = None if real is None else real.flatten()
        routers = []
        for logits_NE in output.router_logits:
            probs_NE = logits_NE.float().softmax(dim=-1)
            selected_Nk, experts_Nk = probs_NE.topk(experts, dim=-1)
            routers.append(router_stats(probs_NE, selected_Nk, experts_Nk, real_N))
        return output.last_hidden_state, tuple(routers)


class DistillationLoss(TrainingLoss):
    """As :class:`TrainingLoss`, plus `kl_weight` times KL(teacher ‖ student) in nats, mean over the same targets; the
    teacher, on the student's device, is not trained, and not part of this module. `None` leaves cross-entropy alone.
    """

    def __init__(
        self, student: StockDecoder, teacher: StockDecoder | None, kl_weight: float, *args: Any, **options: Any
    ) -> None:
        as_decoder: Any = student  # it has what the loss asks of one
        super().__init__(as_decoder, *args, **options)
        self.kl_weight = kl_weight
        self._teacher = (teacher,)  # in a tuple, so that its parameters are not this module's

    def sums(self, batch: Batch) -> Sums:
        targets_N = batch.targets.flatten()
        # Padding is told by its missing target, not by its token: in other tokenizers that may be a word.
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
        return sums["loss"] + self.kl_weight * sums["kl"] if "kl" in sums else sums["loss"]


def linear_kl(hidden_ND: Tensor, head: Any, theirs_ND: Tensor, their_head: Any, wanted_N: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, summed over the wanted tokens; differentiable by the student's hidden states and
    head. Logits exist for some tokens at a time, and are computed again in the backward pass.
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
