"""Logits to the next token: temperature, top-k, top-p, min-p, repetition penalty, seeds.

Shape letters: B rows, V vocabulary, N tokens that may be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sqat.config import Config, require, require_positive

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

WIDE_TOP_P = 1 - 1e-4  # above this, top-p leaves out so little that rounding would matter


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How to choose tokens, and when to stop.

    Raises:
        ConfigError: a field outside its range; the message names it.
    """

    temperature: float = 0.8  # 0: greedy
    top_k: int | None = None  # keep only the k most likely tokens
    top_p: float = 0.95  # keep the most likely tokens that together reach this probability (nucleus, arXiv 1904.09751)
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the most likely (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # above 1: tokens seen before become less likely (CTRL, arXiv 1909.05858)
    max_tokens: int = 256  # new tokens, at most
    seed: int | None = None  # row i of a batch draws from seed + i; null: different every time
    stop: tuple[str, ...] = ()  # strings that end the answer, and are not part of it

    def __post_init__(self) -> None:
        require(self.temperature >= 0, self, "temperature", "0 (greedy) or above")
        require(self.top_k is None or self.top_k >= 1, self, "top_k", "at least 1, or null for no limit")
        require(0 < self.top_p <= 1, self, "top_p", "above 0 and at most 1 (1: no limit)")
        require(0 <= self.min_p <= 1, self, "min_p", "between 0 (no limit) and 1")
        require(self.repetition_penalty > 0, self, "repetition_penalty", "positive (1: none)")
        require_positive(self, "max_tokens")
        require(self.seed is None or 0 <= self.seed < 2**63, self, "seed", "between 0 and 2^63 - 1, or null")
        right = "a tuple of non-empty strings"
        require(isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop), self, "stop", right)


class RowSampler:
    """Chooses one token for each row. Every row has its own generator, so no row's draws depend on the others.

    Args:
        config: how to choose.
        prompts: each row's tokens so far, which the repetition penalty counts as seen.
        vocab_size: V.
        device: where the logits will be.
        num_ids: only ids below it are chosen, such as the tokenizer's size where the model has more embeddings.
        numbers: of the rows, which their seeds are counted by; 0, 1, … by default.
    """

    def __init__(
        self,
        config: SamplingConfig,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
        *,
        num_ids: int | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.config = config
        self.num_ids = num_ids
        base = torch.Generator().seed() if config.seed is None else config.seed
        numbers = range(len(prompts)) if numbers is None else numbers
        self.generators = [torch.Generator().manual_seed((base + i) % 2**63) for i in numbers]
        self.seen_BV: Tensor | None = None
        if config.repetition_penalty != 1.0:
            self.seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self.seen_BV, prompts, strict=True):
                row[list(prompt)] = True

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of every row, (B,)."""
        logits_BV = logits_BV[:, : self.num_ids].float()
        if self.seen_BV is not None:
            seen_BV = self.seen_BV[:, : self.num_ids]
            logits_BV = penalise(logits_BV, seen_BV, self.config.repetition_penalty)
        if self.config.temperature == 0:
            tokens_B = _likeliest(logits_BV)
        else:
            probs_BV = _unnormalised_probs(logits_BV, self.config.temperature)
            uniform_B = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self.generators])
            tokens_B = draw(probs_BV, uniform_B, self.config)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, tokens_B.unsqueeze(1), True)
        return tokens_B

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        self.generators = [self.generators[row] for row in rows]
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[list(rows)]


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits of seen tokens divided by `penalty` where positive, multiplied where negative."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def _likeliest(logits_BV: Tensor) -> Tensor:
    """The first of the largest of every row, (B,); on a CPU by numpy, in a tenth of the time."""
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(dim=-1)
    return torch.from_numpy(logits_BV.detach().numpy().argmax(axis=1))


def _unnormalised_probs(logits_BV: Tensor, temperature: float) -> Tensor:
    """exp(logits / temperature), (B, V), relative to each row's largest, so that a tiny temperature cannot overflow."""
    if logits_BV.device.type != "cpu":
        return ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature).exp()
    logits = logits_BV.detach().numpy()  # numpy's calls are shorter
    below = logits - logits.max(axis=1, keepdims=True)
    below /= np.float32(max(temperature, 1e-35))  # lower ones are zero in float32
    return torch.from_numpy(np.exp(below, out=below))


def draw(probs_BV: Tensor, uniform_B: Tensor, config: SamplingConfig) -> Tensor:
    """Draw the token of every row, (B,), from those that `config` keeps.

    It is the first, in the order of ids, at which the sum of probabilities exceeds the share `uniform_B` of their
    total, in float64. On a CPU only tokens that may be kept are looked at; the result is that of :func:`draw_naive`.
    """
    if probs_BV.device.type == "mps":  # which has no float64
        return draw(probs_BV.cpu(), uniform_B, config).to(probs_BV.device)
    if probs_BV.device.type != "cpu":
        return draw_naive(probs_BV, uniform_B, config)
    likeliest_Bk: Ids | None = None
    if config.top_k is not None and config.top_k < probs_BV.shape[1]:
        order_Bk = probs_BV.topk(config.top_k, dim=-1, sorted=False).indices  # torch's choice among equal ones
        likeliest_Bk = order_Bk.sort(dim=-1).values.numpy()
    tokens = [
        _draw_row(probs_V, None if likeliest_Bk is None else likeliest_Bk[row], uniform, config)
        for row, (probs_V, uniform) in enumerate(zip(probs_BV.detach().numpy(), uniform_B.tolist(), strict=True))
    ]
    return torch.from_numpy(np.array(tokens))


def draw_naive(probs_BV: Tensor, uniform_B: Tensor, config: SamplingConfig) -> Tensor:
    """The definition of :func:`draw`, and what runs on GPUs: everything for the whole vocabulary."""
    cumulative_BV = keep_likeliest(probs_BV, config).double().cumsum(dim=-1)
    end_B1 = cumulative_BV[:, -1:]
    target_B1 = uniform_B.to(probs_BV.device).unsqueeze(1) * end_B1
    target_B1 = target_B1.minimum(end_B1.nextafter(torch.zeros_like(end_B1)))
    places_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
    return places_B.clamp(max=probs_BV.shape[1] - 1)  # out of range where probabilities are NaN


def keep_likeliest(probs_BV: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities with those outside top-k, then top-p, then min-p set to zero; the likeliest always stays.

    They are not renormalised.
    """
    if config.top_k is not None and config.top_k < probs_BV.shape[-1]:
        values, order = probs_BV.topk(config.top_k, dim=-1)  # exactly k, also where probabilities are equal
        probs_BV = torch.zeros_like(probs_BV).scatter(1, order, values)
    if config.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.double().cumsum(dim=-1) - sorted_BV
        kept_BV = before_BV < config.top_p * sorted_BV.double().sum(dim=-1, keepdim=True)
        kept_BV[:, 0] = True
        probs_BV = torch.zeros_like(probs_BV).scatter(1, order_BV, sorted_BV * kept_BV)
    if config.min_p > 0:
        probs_BV = probs_BV * (probs_BV >= config.min_p * probs_BV.amax(dim=-1, keepdim=True))
    return probs_BV


def _draw_row(probs_V: Floats, ids_N: Ids | None, uniform: float, config: SamplingConfig) -> int:
    """One row of :func:`draw`, among the sorted `ids_N` (`None`: all)."""
    if math.isnan(probs_V[0]):  # then all are: the model diverged
        return len(probs_V) - 1
    probs_N = probs_V if ids_N is None else probs_V[ids_N]
    if config.top_p < 1:
        nucleus = _nucleus(probs_N, config.top_p)
        probs_N, ids_N = probs_N[nucleus], nucleus if ids_N is None else ids_N[nucleus]
    if config.min_p > 0:
        likely = (probs_N >= np.float32(config.min_p) * probs_N.max()).nonzero()[0]
        probs_N, ids_N = probs_N[likely], likely if ids_N is None else ids_N[likely]
    cumulative_N = probs_N.cumsum(dtype=np.float64)
    end = float(cumulative_N[-1])
    target = min(uniform * end, math.nextafter(end, 0))  # below the end also when rounded
    place = int(cumulative_N.searchsorted(target, "right"))
    return place if ids_N is None else int(ids_N[place])


def _nucleus(probs_N: Floats, top_p: float) -> Ids:
    """The sorted places of the likeliest tokens that together reach `top_p` of the sum; of equal ones the first.

    A token below half of (1 - top_p) / N of the sum cannot be among them, since all such tokens together are less than
    what top-p leaves out. Only the others are sorted, which are few for a trained model.
    """
    total = float(probs_N.sum(dtype=np.float64))
    least = 0.5 * (1 - top_p) * total / len(probs_N) if top_p < WIDE_TOP_P else 0.0
    places = (probs_N >= np.float32(least)).nonzero()[0]
    values = probs_N[places]
    sorted_N = np.sort(values)[::-1]
    before_N = sorted_N.cumsum(dtype=np.float64) - sorted_N
    count = max(int(before_N.searchsorted(top_p * total)), 1)
    if count >= len(values):
        return places
    kept = (values >= sorted_N[count - 1]).nonzero()[0]
    if len(kept) > count:
        equal = kept[values[kept] == sorted_N[count - 1]]
        kept = np.setdiff1d(kept, equal[count - len(kept) :], assume_unique=True)
    return places[kept]
