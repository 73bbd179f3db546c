"""Metrics over a whole validation set, in which every real token has the same weight."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqat.data.batches import IGNORE, START, Batches
from sqat.data.tokenizer import PAD
from sqat.data.tokens import TokenFile
from sqat.model import Decoder
from sqat.model.decoder import evaluating
from sqat.model.moe import RouterStats
from sqat.train.distributed import share_out, sum_over_ranks
from sqat.train.loss import token_losses
from sqat.train.step import named_router_stats, router_stats

# Rows are padded to a multiple of this, since every new shape costs time to prepare kernels for.
WIDTH_STEP = 32


@dataclass(frozen=True)
class Evaluation:
    """Validation metrics over real targets (tokens that are not padding). The `padded_` metrics also count padding
    as targets, as the published results of the research models do.
    """

    loss: float  # nats per token
    accuracy: float  # fraction of tokens predicted correctly
    bits_per_byte: float  # of UTF-8 text, so independent of the tokenizer
    targets: int
    padded_loss: float | None = None  # documents truncated or padded to the context, counting padding
    padded_accuracy: float | None = None
    router_load: tuple[tuple[float, ...], ...] = ()  # per layer, each expert's share of the selections
    router_entropy: float | None = None  # nats, mean over tokens and layers

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    def to_dict(self) -> dict[str, Any]:
        """All metrics by name, as they are logged."""
        return {**asdict(self), "perplexity": self.perplexity}

    def summary(self) -> str:
        """All metrics as one line of text."""
        line = f"loss {self.loss:.4f} · perplexity {self.perplexity:.2f} · accuracy {self.accuracy:.2%}"
        line += f" · {self.bits_per_byte:.3f} bits per byte"
        if self.padded_loss is not None:
            line += f" · counting padding: loss {self.padded_loss:.4f}, accuracy {self.padded_accuracy:.2%}"
        return line


@torch.no_grad()
def evaluate(
    decoder: Decoder,
    tokens: TokenFile,
    *,
    batch_size: int = 64,
    context_length: int | None = None,
    padded_metrics: bool = False,
    autocast: AbstractContextManager[Any] | None = None,
) -> Evaluation:
    """Evaluate a model on all documents of a validation set. Documents longer than the context are read in consecutive,
    independent windows.

    Args:
        decoder: the model; its training mode is restored afterwards.
        tokens: the validation set, see :mod:`sqat.data.tokens`.
        batch_size: rows per forward pass; it does not change the result.
        context_length: tokens per window; the model's by default.
        padded_metrics: also compute `padded_loss` and `padded_accuracy`, which takes a second pass.
        autocast: a context to run the model in, such as `torch.autocast`.
    """
    context_length = context_length or decoder.config.context_length
    with evaluating(decoder), autocast or nullcontext():
        right = _score(decoder, _windows(tokens, batch_size, context_length))
        padded = None
        if padded_metrics:  # as in the published results: rows of a document each, with padding as targets
            how: dict[str, Any] = {"mode": "rows", "shuffle": False, "padding_as_target": True}
            rows = Batches(tokens, batch_size=batch_size, context_length=context_length, **how)
            padded = _score(decoder, ((batch.inputs, batch.targets) for batch, _ in rows.epoch(START)))
    targets = right["targets"].item()
    return Evaluation(
        loss=right["loss"].item() / targets,
        accuracy=right["correct"].item() / targets,
        bits_per_byte=right["loss"].item() / math.log(2) / tokens.document_bytes,
        targets=int(targets),
        padded_loss=(padded["loss"] / padded["targets"]).item() if padded else None,
        padded_accuracy=(padded["correct"] / padded["targets"]).item() if padded else None,
        **_router_metrics(router_stats(right)),
    )


def _score(decoder: Decoder, rows: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Sums over the targets of (inputs, targets) batches, in double precision, so that their order hardly matters:
    `loss`, `correct`, `targets`, and router statistics. Ranks share out the batches.
    """
    device = decoder.embedding.weight.device
    head = decoder.head
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("loss", "correct", "targets")}
    for (inputs, targets), counts in share_out(rows):
        inputs, targets = inputs.to(device), targets.to(device)
        hidden_BTD, router = decoder.hidden_states(inputs, real=inputs != PAD)
        found = named_router_stats(router)
        wanted = targets != IGNORE
        losses, hits = token_losses(hidden_BTD[wanted], head.weight, head.bias, targets[wanted])
        found |= {"loss": losses, "correct": hits, "targets": wanted}
        for name, part in found.items():
            on_host = part.cpu()  # some devices have no float64
            exact = on_host.double().sum() if name in ("loss", "correct", "targets") else on_host
            sums[name] = sums.get(name, 0) + exact * counts
    return sum_over_ranks(sums)


def _windows(tokens: TokenFile, batch_size: int, context_length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every document in windows of at most `context_length` inputs, shortest first, to minimise padding."""
    lengths = np.diff(tokens.offsets).tolist()
    pieces = [(i, start) for i, n in enumerate(lengths) for start in range(0, n - 1, context_length)]
    pieces.sort(key=lambda piece: min(context_length, lengths[piece[0]] - 1 - piece[1]))
    for begin in range(0, len(pieces), batch_size):
        batch = pieces[begin : begin + batch_size]
        rows = [tokens.document(i)[start : start + context_length + 1] for i, start in batch]
        width = min(-(-(len(rows[-1]) - 1) // WIDTH_STEP) * WIDTH_STEP, context_length)
        inputs = np.full((len(rows), width), PAD, dtype=np.int64)
        targets = np.full_like(inputs, IGNORE)
        for i, row in enumerate(rows):
            inputs[i, : len(row) - 1] = row[:-1]
            targets[i, : len(row) - 1] = row[1:]
        yield torch.from_numpy(inputs), torch.from_numpy(targets)


def _router_metrics(layers: list[RouterStats]) -> dict[str, Any]:
    if not layers:
        return {}
    load = tuple(tuple((layer.load_E / layer.load_E.sum()).tolist()) for layer in layers)
    entropy = sum(float(layer.entropy / layer.tokens) for layer in layers) / len(layers)
    return {"router_load": load, "router_entropy": entropy}
