"""The training loss: cross-entropy of the next token without ever holding all logits, and the router's losses.

Shape letters: N rows, D width, V vocabulary, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.data.batches import IGNORE
from sqat.errors import ConfigError
from sqat.model.moe import RouterStats

CHUNK_ROWS = 512


class LossSums(NamedTuple):
    """Sums over targets, so that batches add up."""

    loss: Tensor  # cross-entropy in nats, differentiable
    correct: Tensor  # targets that were the likeliest token
    targets: Tensor  # how many


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> LossSums:
    """Cross-entropy of `targets_N` under softmax(hidden · weightᵀ + bias), summed, targets of `IGNORE` left out.

    Logits exist for `CHUNK_ROWS` rows at a time, and the gradients are taken while they do (so the backward pass only
    scales them). The products run in the autocast type if one is set; softmax and sums are float32.
    """
    device = hidden_ND.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    keep = (targets_N != IGNORE).nonzero().squeeze(1)
    if len(keep) < len(targets_N):
        hidden_ND, targets_N = hidden_ND[keep], targets_N[keep]
    with torch.autocast(device, enabled=False):
        loss, correct = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, compute)
    return LossSums(loss, correct, torch.tensor(len(keep), device=hidden_ND.device))


def cross_entropy_naive(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> LossSums:
    """The definition, for tests."""
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V)
    loss = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="sum")
    return LossSums(loss, (logits_NV.argmax(dim=-1) == targets_N).sum(), (targets_N != IGNORE).sum())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, compute: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        hidden, weight = hidden_ND.to(compute), weight_VD.to(compute)
        exact = torch.promote_types(weight_VD.dtype, torch.float32)  # sums over chunks are not rounded in between
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        d_weight = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=exact) if wants_bias and bias_V is not None else None
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        for rows, target, probs, chunk_loss, hits in _chunks(hidden, weight, bias_V, targets_N):
            loss += chunk_loss.sum()
            correct += hits.sum()
            if any(ctx.needs_input_grad):
                # d loss / d logits = softmax - onehot(target)
                probs[torch.arange(len(target), device=target.device), target] -= 1.0
                d_logits = probs.to(compute)
                if d_hidden is not None:
                    d_hidden[rows] = d_logits @ weight
                if d_weight is not None:
                    d_weight += d_logits.T @ hidden[rows]
                if d_bias is not None:
                    d_bias += probs.sum(dim=0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if d is None else d * grad_loss for d in ctx.saved_tensors)
        return *scaled, None, None


def _chunks(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """For a chunk of rows at a time: (rows, targets, probabilities, losses, whether the likeliest token was right)."""
    exact = torch.promote_types(hidden_ND.dtype, torch.float32)
    buffer = torch.empty(min(CHUNK_ROWS, len(targets_N)), len(weight_VD), dtype=exact, device=hidden_ND.device)
    for start in range(0, len(targets_N), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        target = targets_N[rows]
        logits = buffer[: len(target)].copy_(hidden_ND[rows] @ weight_VD.T)
        if bias_V is not None:
            logits += bias_V
        largest, likeliest = logits.max(dim=-1, keepdim=True)
        shifted_target = logits.gather(1, target.unsqueeze(1)) - largest
        probs = logits.sub_(largest).exp_()
        total = probs.sum(dim=-1, keepdim=True)
        losses = (total.log() - shifted_target).squeeze(1)
        yield rows, target, probs.div_(total), losses, likeliest.squeeze(1) == target


@torch.no_grad()
def token_losses(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's cross-entropy (nats, float32) and whether its likeliest token was right; no gradients, every target
    counts.
    """
    device = hidden_ND.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        parts = [
            (losses, hits)
            for *_, losses, hits in _chunks(hidden_ND.to(compute), weight_VD.to(compute), bias_V, targets_N)
        ]
    losses_N, hits_N = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses_N, hits_N


def router_loss(stats: Sequence[RouterStats], kind: str) -> Tensor:
    """Auxiliary loss of the routers, mean over layers.

    "balanced": E · Σ f·P with f an expert's share of selections and P its mean probability over all tokens (Switch,
    arXiv 2101.03961, eq. 4); 1 when balanced, up to E when collapsed. "card": P over the tokens that chose the expert,
    the original's form, which is the same however the load is spread.

    Raises:
        ConfigError: unknown kind.
    """
    if kind == "balanced":
        losses = [_balanced(layer) for layer in stats]
    elif kind == "card":
        losses = [_card(layer) for layer in stats]
    else:
        raise ConfigError(f"router_loss is {kind!r}, but must be balanced or card")
    return torch.stack(losses).mean()


def _balanced(layer: RouterStats) -> Tensor:
    share_E = layer.load_E / layer.load_E.sum().clamp(min=1)
    return len(share_E) * (share_E * layer.probability_E / layer.tokens.clamp(min=1)).sum()


def _card(layer: RouterStats) -> Tensor:
    share_E = layer.load_E / layer.load_E.sum().clamp(min=1)
    return len(share_E) * (share_E * layer.selected_E / layer.load_E.clamp(min=1)).sum()
