"""Norms of a lean step.

Shape letters: B rows, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sqat.cpu.lean.linear import Array, array


class LeanNorm:
    """`nn.RMSNorm`, `nn.LayerNorm` or `nn.Identity`, in two parts: `unit` without weights, and `gain` and `shift`.

    The root of the mean square is taken as that of the sum: x / sqrt(Σx² + D·eps) · (weight · sqrt(D)).
    """

    def __init__(self, module: nn.Module, rows: int, width: int) -> None:
        self.gain: Array | None = None
        self.shift: Array | None = None
        self.centred = isinstance(module, nn.LayerNorm)
        self.unit_BD = np.empty((rows, width), np.float32)
        self.out_BD = np.empty((rows, width), np.float32)
        self.scale_B1 = np.empty((rows, 1), np.float32)
        self.scale_B = self.scale_B1[:, 0]
        if isinstance(module, nn.RMSNorm | nn.LayerNorm):
            eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
            self.eps_1 = np.array([eps * width], np.float32)
            self.per_element_1 = np.array([1 / width], np.float32)
            self.gain = array(module.weight) * np.float32(width**0.5)
            self.shift = array(module.bias) if isinstance(module, nn.LayerNorm) else None

    def unit(self, x_BD: Array) -> Array:
        """Without gain and shift, (B, D); overwritten by the next call."""
        if self.gain is None:
            return x_BD
        if self.centred:
            np.add.reduce(x_BD, 1, out=self.scale_B1, keepdims=True)
            np.multiply(self.scale_B1, self.per_element_1, self.scale_B1)
            x_BD = np.subtract(x_BD, self.scale_B1, self.unit_BD)
        np.vecdot(x_BD, x_BD, self.scale_B)
        np.add(self.scale_B, self.eps_1, self.scale_B)
        np.sqrt(self.scale_B, self.scale_B)
        return np.divide(x_BD, self.scale_B1, self.unit_BD)

    def __call__(self, x_BD: Array) -> Array:
        """The norm, (B, D); overwritten by the next call."""
        if self.gain is None:
            return x_BD
        y_BD = np.multiply(self.unit(x_BD), self.gain, self.out_BD)
        return y_BD if self.shift is None else np.add(y_BD, self.shift, y_BD)
