"""Dropout masks, drawn from raw random bits where that is many times faster than `bernoulli_`."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 2**16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with a share `p` of its elements set to zero and the rest scaled up; outside training `x` itself."""
    return x * dropout_mask(x, p) if training and p else x


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """Zeros with probability `p` (to within 2^-17), else 1 / (1 - p); shape, type and device of `like`.

    On a CPU every random 64-bit integer decides four elements: about a tenth of the time of `bernoulli_`, which draws a
    float for each. The mean is exactly 1: the scale is that of the share really kept.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - p).div_(1 - p)
    dropped = round(p * _LEVELS)
    bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = bits.view(torch.int16)[: like.numel()] >= dropped - _LEVELS // 2
    return keep.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(like.shape)
