"""The dense feed-forward of a lean step.

Shape letters: B rows, D width, F hidden width, I = F (or 2F, gated).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqat.cpu.lean.linear import Array, LeanLinear, array, optional_array
from sqat.cpu.lean.norm import LeanNorm
from sqat.model.feedforward import FeedForward

# The functions of :data:`sqat.model.feedforward.ACTIVATIONS`, in place. They are torch's: numpy has no erf, and would
# need five passes for silu.
IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "silu": lambda x: F.silu(x, inplace=True),
    "swish": lambda x: F.silu(x, inplace=True),
    "gelu": torch.ops.aten.gelu_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "linear": lambda x: x,
}


class Activation:
    """The activation between two layers, in place: fill `before`, then call for what the second layer reads.

    Args:
        before: output of the first layer, (rows, I), or (I, rows) with `axis` 0.
        width: F.
        activation, gated: as in :class:`sqat.model.feedforward.FeedForward`.
    """

    def __init__(self, before: Array, width: int, activation: str, gated: bool, axis: int = 1) -> None:
        self.before = before
        self.linear, self.gate = np.split(before, [width], axis) if gated else (before, before)
        self.gate_tensor = torch.from_numpy(self.gate)
        self.product = np.empty(self.gate.shape, np.float32) if gated else None
        self.in_place = IN_PLACE[activation]

    def __call__(self) -> Array:
        self.in_place(self.gate_tensor)
        return self.before if self.product is None else np.multiply(self.linear, self.gate, self.product)


class LeanFeedForward:
    """`feedforward(norm2(x))` of a dense layer."""

    def __init__(self, feedforward: FeedForward, norm: nn.Module, rows: int, activation: str) -> None:
        fc1, fc2 = feedforward.fc1, feedforward.fc2
        self.norm = LeanNorm(norm, rows, fc1.in_features)
        self.fc1 = LeanLinear(array(fc1.weight), optional_array(fc1.bias), rows)
        self.fc2 = LeanLinear(array(fc2.weight), optional_array(fc2.bias), rows)
        self.activate = Activation(self.fc1.out_BO, fc2.in_features, activation, feedforward.gated)

    def __call__(self, x_BD: Array) -> Array:
        """What to add to the residual stream, (B, D); overwritten by the next call."""
        self.fc1(self.norm(x_BD))
        return self.fc2(self.activate())
