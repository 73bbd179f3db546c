"""A stock model with the face of this package's decoder, as training and evaluation see one.

Shape letters: B rows, T tokens, D hidden size, N tokens of all rows, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqat.model.moe import RouterStats


@dataclass(frozen=True)
class StockView:
    """The fields of a configuration that training and evaluation ask for."""

    vocab_size: int
    context_length: int
    attention_dropout: float


class StockDecoder(nn.Module):
    """Wraps a causal language model of `transformers`.

    Args:
        model: the model; it is used as it is, not copied.
        context_length: tokens of a row in training and evaluation.
    """

    def __init__(self, model: PreTrainedModel, context_length: int) -> None:
        super().__init__()
        self.model = model
        dropout = float(getattr(model.config, "attention_dropout", 0.0))
        self._gradient_checkpointing = False
        self.config = StockView(model.config.vocab_size, context_length, dropout)

    @property
    def embedding(self) -> Any:
        return self.model.get_input_embeddings()

    @property
    def head(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def gradient_checkpointing(self) -> bool:
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
        """What the head reads, (B, T, D), and the routers' statistics, a layer each (none in a dense model).

        Args:
            positions: in the document, restarting at each: from that transformers keeps documents apart, so
                `documents` is not needed.
            real: (B, T) bool; tokens that count in the statistics, by default all.
        """
        experts = getattr(self.model.config, "num_experts_per_tok", None)
        wanted = {"output_router_logits": True} if experts else {}
        # Without a cache: with one, transformers does not look for documents.
        output = self.model.get_decoder()(input_ids=inputs_BT, position_ids=positions, use_cache=False, **wanted)
        if not experts:
            return output.last_hidden_state, ()
        real = torch.ones_like(inputs_BT, dtype=torch.bool) if real is None else real
        routers = tuple(_router_stats(logits, experts, real.flatten()) for logits in output.router_logits)
        return output.last_hidden_state, routers


def _router_stats(logits_NE: Tensor, experts_per_token: int, real_N: Tensor) -> RouterStats:
    """As this package's own routers count; both softmax over all experts."""
    probs_NE = logits_NE.float().softmax(dim=-1)
    chosen_NE = torch.zeros_like(probs_NE).scatter(1, probs_NE.topk(experts_per_token, dim=-1).indices, 1.0)
    weight_N1 = real_N.to(probs_NE.dtype).unsqueeze(1)
    entropy_N = -(probs_NE * probs_NE.clamp(min=1e-30).log()).sum(dim=-1)
    return RouterStats(
        load_E=(chosen_NE * weight_N1).sum(dim=0).detach(),
        probability_E=(probs_NE * weight_N1).sum(dim=0),
        selected_E=(probs_NE * chosen_NE * weight_N1).sum(dim=0),
        entropy=(entropy_N * weight_N1.squeeze(1)).sum().detach(),
        tokens=weight_N1.sum().detach(),
    )
