"""The dense feed-forward, and the activations by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.model.dropout import dropout

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
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.feedforward_dropout
        self.fc1 = nn.Linear(config.hidden_size, width * (2 if config.gated else 1), bias=config.feedforward_bias)
        self.fc2 = nn.Linear(width, config.hidden_size, bias=config.feedforward_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        hidden = self.fc1(x_BTD)
        if self.gated:
            linear, gate = hidden.chunk(2, dim=-1)
            hidden = linear * self.activation(gate)
        else:
            hidden = self.activation(hidden)
        return self.fc2(dropout(hidden, self.dropout, self.training))
