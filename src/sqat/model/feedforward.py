"""The dense feed-forward, and what experts share with it: activations, the gate, dropout.

Shape letters: D width, F hidden, I = F (or 2F, gated: linear and gate side by side).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.model.dispatch import operation

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


class FeedForward(nn.Module):
    """`fc2(dropout(act(fc1(x))))`, or gated (GLU variants, arXiv 2002.05202): fc1 gives (linear, gate), and `linear ·
    act(gate)` goes on.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.intermediate_size
        self.gated = config.gated
        self.activation = config.activation
        self.dropout = config.feedforward_dropout
        self.fc1 = nn.Linear(config.hidden_size, width * (2 if config.gated else 1), bias=config.feedforward_bias)
        self.fc2 = nn.Linear(width, config.hidden_size, bias=config.feedforward_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        return self.fc2(dropout(activate(self.fc1(x_BTD), self.activation, self.gated), self.dropout, self.training))


def activate(hidden: Tensor, activation: str, gated: bool) -> Tensor:
    """(…, I) to (…, F)."""
    if not gated:
        return ACTIVATIONS[activation](hidden)
    linear, gate = hidden.chunk(2, dim=-1)
    return linear * ACTIVATIONS[activation](gate)


@operation
def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with each element zero with probability `p` and the others scaled so that the mean stays; `x` itself outside
    of training.
    """
    return F.dropout(x, p, training) if training and p else x
