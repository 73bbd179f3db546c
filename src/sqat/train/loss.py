"""The training loss: cross-entropy of the next token without ever holding all logits, and the router's losses.

Shape letters: N rows, D width, V vocabulary, E experts.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.data.batches import IGNORE
from sqat.errors import ConfigError
from sqat.model import dispatch
from sqat.model.moe import RouterStats

# Rows whose logits exist at once, and rows of these whose softmax does, by device; on a CPU they stay in its caches.
CHUNK_ROWS = {"cpu": (2048, 512), "cuda": (8192, 8192)}


class LossSums(NamedTuple):
    """Sums over targets, so that batches add up."""

    loss: Tensor  # cross-entropy in nats, differentiable
    correct: Tensor  # targets that were the likeliest token
    targets: Tensor  # how many


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> LossSums:
    """Cross-entropy of `targets_N` under softmax(hidden · weightᵀ + bias), summed, targets of `IGNORE` left out.

    Logits exist for some rows at a time (`CHUNK_ROWS`), and the gradients are taken while they do (so the backward pass
    only scales them). The products run in the autocast type if one is set; softmax and sums are float32.
    """
    if dispatch.is_plain() or not (torch.compiler.is_compiling() or dispatch.has_values(hidden_ND, weight_VD)):
        return cross_entropy_naive(hidden_ND, weight_VD, bias_V, targets_N)
    device, compute = hidden_ND.device.type, dispatch.autocast_dtype(hidden_ND)
    keep = torch.arange(len(targets_N), device=targets_N.device)
    if not _counting_waits(device):
        keep = (targets_N != IGNORE).nonzero().squeeze(1)
    with dispatch.without_autocast(hidden_ND):
        loss, correct = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, keep, compute)
    return LossSums(loss, correct, (targets_N != IGNORE).sum())


def _counting_waits(device: str) -> bool:
    """Whether to read how many rows have targets would wait for the device or break a graph; all are computed then."""
    return device != "cpu" or torch.compiler.is_compiling()


def cross_entropy_naive(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> LossSums:
    """The definition of :func:`linear_cross_entropy`, with all logits at once; for tests, and for tracing."""
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V)
    loss = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="sum")
    return LossSums(loss, (logits_NV.argmax(dim=-1) == targets_N).sum(), (targets_N != IGNORE).sum())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        keep: Tensor,  # the rows to compute
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        weight = weight_VD.to(compute)
        exact = torch.promote_types(weight_VD.dtype, torch.float32)  # sums over chunks are not rounded in between
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden_ND) if wants_hidden else None
        d_weight = torch.zeros_like(weight_VD, dtype=exact) if wants_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=exact) if wants_bias and bias_V is not None else None
        loss = hidden_ND.new_zeros((), dtype=torch.float32)
        correct = torch.zeros((), dtype=torch.long, device=hidden_ND.device)
        for rows, hidden, logits in _chunks(hidden_ND, weight, keep):
            targets_R = targets_N.index_select(0, rows)
            losses_R, hits_R = cross_entropy(logits, bias_V, targets_R, any(ctx.needs_input_grad), d_bias)
            loss += losses_R.sum()
            correct += hits_R.sum()
            real_R1 = (targets_R != IGNORE).unsqueeze(1)
            if d_hidden is not None:
                d_hidden.index_copy_(0, rows, (logits @ weight).mul_(real_R1).to(d_hidden.dtype))
            if d_weight is not None:
                d_weight += logits.T @ hidden.mul_(real_R1)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @dispatch.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if d is None else d * grad_loss for d in ctx.saved_tensors)
        return *scaled, None, None, None


def _chunks(hidden_ND: Tensor, weight_VD: Tensor, keep: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, hidden, logits without bias) for one chunk of `keep` after the other, in the weight's type; all logits
    share their memory.
    """
    size = CHUNK_ROWS.get(hidden_ND.device.type, CHUNK_ROWS["cpu"])[0]
    shape = min(size, len(keep)), len(weight_VD)
    buffer = torch.empty(shape, dtype=weight_VD.dtype, device=hidden_ND.device)
    for rows in keep.split(size) if len(keep) else ():
        hidden = hidden_ND.index_select(0, rows).to(weight_VD.dtype)  # a copy, which may be changed
        yield rows, hidden, torch.mm(hidden, weight_VD.T, out=buffer[: len(rows)])


@dispatch.operation
def cross_entropy(
    logits_RV: Tensor, bias_V: Tensor | None, targets_R: Tensor, train: bool, d_bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each row's loss and whether the likeliest token was right; zero and false where there is no target (`IGNORE`).

    With `train`, d loss / d logits = softmax - onehot(target) replaces the logits (rows without a target hold garbage),
    and is summed into `d_bias_V`, if given.
    """
    size = CHUNK_ROWS.get(logits_RV.device.type, CHUNK_ROWS["cpu"])[1]
    exact = torch.promote_types(logits_RV.dtype, torch.float32)
    buffer = torch.empty(min(size, len(logits_RV)), logits_RV.shape[1], dtype=exact, device=logits_RV.device)
    parts = []
    for target, place in zip(targets_R.split(size), logits_RV.split(size), strict=True):
        real, target_R1 = target != IGNORE, target.clamp(min=0).unsqueeze(1)
        logits = buffer[: len(target)].copy_(place)
        if bias_V is not None:
            logits += bias_V
        target_logit, likeliest = logits.gather(1, target_R1), logits.argmax(dim=-1, keepdim=True)
        largest = logits.gather(1, likeliest)
        probs = torch.softmax(logits, dim=-1, out=logits)
        # log Σ exp(logit) = largest - log p(likeliest): exact where p(target) itself underflows
        losses = (largest - probs.gather(1, likeliest).log() - target_logit).squeeze(1)
        parts.append((losses * real, (likeliest == target_R1).squeeze(1) & real))
        if train:
            probs.scatter_add_(1, target_R1, probs.new_full((len(target), 1), -1.0))
            if d_bias_V is not None:
                d_bias_V += real.to(probs.dtype) @ probs
            place.copy_(probs)
    losses_R, hits_R = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses_R, hits_R


@torch.no_grad()
def token_losses(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's cross-entropy (nats, float32), and whether its likeliest token was right, without gradients. Every row
    must have a target.
    """
    compute = dispatch.autocast_dtype(hidden_ND)
    with dispatch.without_autocast(hidden_ND):
        everything = torch.arange(len(targets_N), device=targets_N.device)
        parts = [
            cross_entropy(logits, bias_V, targets_N.index_select(0, rows), train=False)
            for rows, _, logits in _chunks(hidden_ND, weight_VD.to(compute), everything)
        ]
    losses_N, hits_N = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses_N, hits_N


def router_loss(stats: Sequence[RouterStats], kind: str) -> Tensor:
    """Auxiliary loss of the routers, mean over layers.

    "balanced": E · Σ f·P with f an expert's share of selections and P its mean probability over all tokens (Switch,
    arXiv 2101.03961, eq. 4); 1 when balanced, up to E when collapsed. "rxnn": P over the tokens that chose the expert,
    the original's form, which is the same however the load is spread.

    Raises:
        ConfigError: unknown kind.
    """
    if kind not in ("balanced", "rxnn"):
        raise ConfigError(f"router_loss is {kind!r}, but must be balanced or rxnn")
    losses = []
    for layer in stats:
        share_E = layer.load_E / layer.load_E.sum().clamp(min=1)
        if kind == "balanced":
            probability_E = layer.probability_E / layer.tokens.clamp(min=1)
        else:
            probability_E = layer.selected_E / layer.load_E.clamp(min=1)
        losses.append(len(share_E) * (share_E * probability_E).sum())
    return torch.stack(losses).mean()
