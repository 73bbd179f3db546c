"""From logits to the next token.

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqat.config import Config, require, require_positive
from sqat.generate.draw import draw


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """How tokens are chosen, and when to stop.

    Raises:
        ConfigError: a field outside its range; the message names it.
    """

    temperature: float = 0.8  # 0: greedy
    top_k: int | None = None  # only the k likeliest
    top_p: float = 0.95  # only the likeliest that together reach this probability (nucleus, arXiv 1904.09751)
    min_p: float = 0.0  # only those at least this share as likely as the likeliest (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # above 1: tokens seen before become less likely (CTRL, arXiv 1909.05858)
    max_tokens: int = 256  # new tokens
    seed: int | None = None  # row i of a batch draws from seed + i; null: different every time
    stop: tuple[str, ...] = ()  # text that ends the answer, and is not part of it

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
    """Chooses one token for each row. Every row has a generator of its own, so its draws do not depend on the other
    rows.

    Args:
        config: how to choose.
        prompts: each row's tokens so far, which the repetition penalty counts as seen.
        vocab_size: V.
        device: where the logits will be.
    """

    def __init__(
        self,
        config: SamplingConfig,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        base = torch.Generator().seed() if config.seed is None else config.seed
        self.generators = [torch.Generator().manual_seed((base + i) % 2**63) for i in range(len(prompts))]
        self.seen_BV: Tensor | None = None
        if config.repetition_penalty != 1.0:
            self.seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self.seen_BV, prompts, strict=True):
                row[list(prompt)] = True

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of every row, (B,)."""
        logits_BV = logits_BV.float()
        if self.seen_BV is not None:
            logits_BV = penalise(logits_BV, self.seen_BV, self.config.repetition_penalty)
        if self.config.temperature == 0:
            tokens_B = _likeliest(logits_BV)
        else:
            probs_BV = _weights(logits_BV, self.config.temperature)
            uniform_B = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self.generators])
            tokens_B = draw(probs_BV, uniform_B, self.config)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, tokens_B.unsqueeze(1), True)
        return tokens_B


def _likeliest(logits_BV: Tensor) -> Tensor:
    """The first of the largest of every row, (B,); numpy finds it at a tenth of the time."""
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(dim=-1)
    return torch.from_numpy(logits_BV.detach().numpy().argmax(axis=1))


def _weights(logits_BV: Tensor, temperature: float) -> Tensor:
    """exp(logits / temperature), (B, V), relative to each row's largest, so that a tiny temperature cannot overflow; in
    numpy on a CPU, for its shorter calls.
    """
    if logits_BV.device.type != "cpu":
        return ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature).exp()
    logits = logits_BV.detach().numpy()
    below = logits - logits.max(axis=1, keepdims=True)
    below /= np.float32(max(temperature, 1e-35))  # below, quotients would be infinite
    return torch.from_numpy(np.exp(below, out=below))


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits of seen tokens divided by `penalty` where positive, multiplied where negative."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)
