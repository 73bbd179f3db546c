"""Dropout by bit masks: raw random bits and a bitwise AND, many times faster than `bernoulli_` and a product."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sqat.model.dispatch import implements
from sqat.seeds import draw_seeds

_LEVELS = 2**15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@implements("dropout", "cpu")
def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    return x * dropout_mask(x, p) if training and p else x


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """Zeros with probability `p` (to within 2^-16), else `keep_scale(p)`; shape and type of `like`."""
    mask = torch.full_like(like, keep_scale(p))
    bits = keep_bits(random_bits(like.shape, like.dtype), p)
    mask.view(bits.dtype).bitwise_and_(bits)
    return mask


def keep_scale(p: float) -> float:
    """The factor for kept elements: one over the share that `keep_bits` keeps, which preserves the mean."""
    return _LEVELS / (_LEVELS - round(p * _LEVELS))


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random integers as wide as elements of `dtype`, of which only the low 16 bits are used: each 64-bit word of a
    fast generator yields four.
    """
    count = math.prod(shape)
    words = np.random.SFC64(draw_seeds(1)[0]).random_raw((count + 3) // 4)
    return torch.from_numpy(words.view(np.int16))[:count].view(shape).to(_INTEGERS[dtype.itemsize])


def keep_bits(draws: Tensor, p: float) -> Tensor:
    """Random bits, changed in place: zero with probability `p` (to within 2^-16), else all ones."""
    half = _LEVELS // 2
    dropped, sign = round(p * _LEVELS), 8 * draws.element_size() - 1
    # Uniform from -half to half - 1, then moved so that all but `dropped` values are negative; their sign fills them.
    return draws.bitwise_right_shift_(1).add_(dropped - half).bitwise_right_shift_(sign)
