"""Dropout by bit masks: raw random bits and a bitwise AND, many times faster than `bernoulli_` and a product."""

from __future__ import annotations

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
    """Zeros with probability `p` (to within 2^-16), else `keep_scale(p)`; shape and type of `like`.

    Each 64-bit word of a fast generator yields four numbers. They are moved so that all but the dropped ones are
    negative, and their sign then fills the mask.
    """
    count, dropped = like.numel(), round(p * _LEVELS)
    words = np.random.SFC64(draw_seeds(1)[0]).random_raw((count + 3) // 4)
    bits = torch.from_numpy(words.view(np.int16))[:count].view(like.shape).to(_INTEGERS[like.itemsize])
    bits.bitwise_right_shift_(1).add_(dropped - _LEVELS // 2).bitwise_right_shift_(8 * like.itemsize - 1)
    mask = torch.full_like(like, keep_scale(p))
    mask.view(bits.dtype).bitwise_and_(bits)
    return mask


def keep_scale(p: float) -> float:
    """The factor for kept elements: one over the share that is kept, which preserves the mean."""
    return _LEVELS / (_LEVELS - round(p * _LEVELS))
