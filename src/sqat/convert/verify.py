"""How close a converted model is to what it was made of.

Shape letters: B rows, T tokens, V vocabulary, D hidden size, L layers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqat.convert.arguments import require_rows
from sqat.errors import ConfigError

BINS = 16  # of positions, in the heat map
BATCH_TOKENS = 1024  # at a time: logits of two models exist for all of them


@dataclass(frozen=True)
class Verification:
    """Figures of two models on the same text."""

    kl: float  # KL(before ‖ after) of the next token's distribution, nats, mean over all positions
    perplexity_before: float
    perplexity_after: float
    agreement: float  # share of positions where both find the same token likeliest
    similarity: tuple[float, ...]  # per layer: cosine of both models' outputs of it, mean over positions
    heat_map: tuple[tuple[float, ...], ...]  # the same, per layer and by position in the row: equal parts, in order
    tokens: int
    row_length: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """One line for people."""
        return (
            f"KL {self.kl:.4f} nats · perplexity {self.perplexity_before:.2f} -> {self.perplexity_after:.2f} · same "
            f"likeliest token {self.agreement:.1%} · hidden states after the last layer: cosine "
            f"{self.similarity[-1]:.3f} · {self.tokens:,} tokens"
        )


@torch.no_grad()
def verify(before: PreTrainedModel, after: PreTrainedModel, data: Tensor) -> Verification:
    """Compare two models of one vocabulary and depth.

    Args:
        before, after: causal language models; their training mode is restored afterwards.
        data: (rows, tokens) int64 token ids, at least two tokens a row.

    Raises:
        ConfigError: `data` of another shape, or with ids that the models do not have; models of different vocabulary
            or depth.
    """
    for field in ("vocab_size", "num_hidden_layers"):
        old, new = getattr(before.config, field), getattr(after.config, field)
        if old != new:
            raise ConfigError(f"{field} is {new} after and {old} before, but must be the same")
    require_rows(data, "data", before.config.vocab_size, least=2)
    modes = [(model, model.training) for model in (before, after)]
    try:
        for model, _ in modes:
            model.eval()
        sums, cosine_LT = _compare(before, after, data)
    finally:
        for model, training in modes:
            model.train(training)
    cosine_LT /= len(data)
    kl, same, loss_before, loss_after = (sums / data.numel()).tolist()
    targets = (data.shape[1] - 1) / data.shape[1]  # the last token of a row has none
    return Verification(
        kl=max(kl, 0.0),
        perplexity_before=_perplexity(loss_before / targets),
        perplexity_after=_perplexity(loss_after / targets),
        agreement=same,
        similarity=tuple(cosine_LT.mean(dim=1).tolist()),
        heat_map=tuple(
            tuple(part.mean().item() for part in row.tensor_split(min(BINS, len(row)))) for row in cosine_LT
        ),
        tokens=data.numel(),
        row_length=data.shape[1],
    )


def _compare(before: PreTrainedModel, after: PreTrainedModel, data: Tensor) -> tuple[Tensor, Tensor]:
    """The figures of `_sums`, and cosines of hidden states (L, T), summed over rows."""
    sums = torch.zeros(4, dtype=torch.float64)
    cosine_LT = torch.zeros(before.config.num_hidden_layers, data.shape[1], dtype=torch.float64)
    for rows in data.split(max(1, BATCH_TOKENS // data.shape[1])):
        (old, old_states), (new, new_states) = (_run(model, rows) for model in (before, after))
        sums += _sums(old, new, rows.cpu())
        for layer, pair in enumerate(zip(old_states, new_states, strict=True)):
            cosine_BT = F.cosine_similarity(pair[0].float().cpu(), pair[1].float().cpu(), dim=-1)
            cosine_LT[layer] += cosine_BT.double().sum(dim=0)
    return sums, cosine_LT


def _run(model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the output of each layer. (The last of transformers' own `hidden_states` is after the final norm.)"""
    states: list[Tensor] = []

    def keep(_: nn.Module, inputs: object, output: Any) -> None:
        states.append(output if isinstance(output, Tensor) else output[0])

    hooks = [layer.register_forward_hook(keep) for layer in model.get_decoder().layers]
    try:
        logits = model(rows.to(model.device), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits.float().cpu(), states


def _sums(before_BTV: Tensor, after_BTV: Tensor, rows_BT: Tensor) -> Tensor:
    """KL, agreements, and both losses, summed over positions."""
    old, new = before_BTV.log_softmax(-1), after_BTV.log_softmax(-1)
    kl = F.kl_div(new, old, reduction="sum", log_target=True)
    same = (old.argmax(-1) == new.argmax(-1)).sum()
    losses = [F.nll_loss(logs[:, :-1].flatten(0, 1), rows_BT[:, 1:].flatten(), reduction="sum") for logs in (old, new)]
    return torch.stack((kl, same, *losses)).double()


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
