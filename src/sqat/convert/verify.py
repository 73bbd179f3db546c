"""How close a converted model is to the one it was made of.

Shape letters: B rows, T tokens, V vocabulary, D hidden size, L layers.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqat.convert.architectures import decoder_layers
from sqat.convert.heads import require_token_ids
from sqat.data.batches import IGNORE
from sqat.errors import ConfigError
from sqat.model.decoder import evaluating
from sqat.train.step import autocast

BATCH_TOKENS = 1024  # at a time: logits of two models exist for all of them


@dataclass(frozen=True)
class Verification:
    """How two models compare on the same text."""

    kl: float  # KL(before ‖ after) of the next token's distribution, nats, mean over real positions
    perplexity_before: float
    perplexity_after: float
    agreement: float  # share of positions where both find the same token likeliest
    similarity: tuple[float, ...]  # per layer: cosine of both models' outputs of it, mean over positions
    tokens: int
    row_length: int

    def scalars(self) -> dict[str, float]:
        """The fields that are one number."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int | float)}

    def summary(self) -> str:
        """One line for the terminal."""
        return (
            f"KL {self.kl:.4f} nats · perplexity {self.perplexity_before:.2f} -> {self.perplexity_after:.2f} · same "
            f"likeliest token {self.agreement:.1%} · hidden states after the last layer: cosine "
            f"{self.similarity[-1]:.3f} · {self.tokens:,} tokens"
        )


@torch.no_grad()
def verify(before: PreTrainedModel, after: PreTrainedModel, data: Tensor, real: Tensor | None = None) -> Verification:
    """Compare two models of one vocabulary and depth.

    Args:
        before: a causal language model.
        after: another, such as one converted from it.
        data: (rows, tokens) int64 token ids, at least two tokens a row, each row from one document.
        real: (rows, tokens), false for what fills up the end of a row; by default all are real.

    Raises:
        ConfigError: `data` has another shape, or ids that the models do not have; the models differ in vocabulary or
            depth.
    """
    for field in ("vocab_size", "num_hidden_layers"):
        old, new = getattr(before.config, field), getattr(after.config, field)
        if old != new:
            raise ConfigError(f"{field} is {new} after and {old} before, but must be the same")
    require_token_ids(data, "data", before.config.vocab_size, least=2)
    real = torch.ones_like(data, dtype=torch.bool) if real is None else real.cpu()
    sums = torch.zeros(4, dtype=torch.float64)
    cosine_L = torch.zeros(before.config.num_hidden_layers, dtype=torch.float64)
    step = max(1, BATCH_TOKENS // data.shape[1])
    with evaluating(before), evaluating(after), autocast("auto", before.device.type):
        for part, kept_BT in zip(data.split(step), real.split(step), strict=True):
            longest = int(kept_BT.sum(dim=1).max())
            rows, kept_BT = part[:, :longest], kept_BT[:, :longest]
            (old_BTV, old_states), (new_BTV, new_states) = (_run(model, rows) for model in (before, after))
            old_BTV, new_BTV = old_BTV.log_softmax(-1), new_BTV.log_softmax(-1)
            targets_N = rows[:, 1:].cpu().masked_fill(~kept_BT[:, 1:], IGNORE).flatten()
            kl = F.kl_div(new_BTV, old_BTV, reduction="none", log_target=True).sum(dim=-1)[kept_BT].sum()
            same = (old_BTV.argmax(-1) == new_BTV.argmax(-1))[kept_BT].sum()
            losses = [
                F.nll_loss(log[:, :-1].flatten(0, 1), targets_N, reduction="sum", ignore_index=IGNORE)
                for log in (old_BTV, new_BTV)
            ]
            sums += torch.stack((kl, same, *losses)).cpu().double()
            for layer, pair in enumerate(zip(old_states, new_states, strict=True)):
                cosine_BT = F.cosine_similarity(pair[0].float().cpu(), pair[1].float().cpu(), dim=-1)
                cosine_L[layer] += (cosine_BT.double() * kept_BT).sum()
    count, targets = int(real.sum()), max(int(real[:, 1:].sum()), 1)
    kl_sum, same_sum, loss_before, loss_after = sums.tolist()
    return Verification(
        kl=max(kl_sum / count, 0.0),
        perplexity_before=math.exp(min(loss_before / targets, 700.0)),
        perplexity_after=math.exp(min(loss_after / targets, 700.0)),
        agreement=same_sum / count,
        similarity=tuple((cosine_L / count).tolist()),
        tokens=count,
        row_length=data.shape[1],
    )


def _run(model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the output of each layer. (The last of transformers' own `hidden_states` is after the final norm.)"""
    states: list[Tensor] = []

    def keep(_: nn.Module, inputs: object, output: Any) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])

    with ExitStack() as hooks:
        for layer in decoder_layers(model):
            hooks.enter_context(layer.register_forward_hook(keep))
        logits = model(rows.to(model.device), use_cache=False).logits
    return logits.float().cpu(), states
