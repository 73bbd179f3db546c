"""Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split layout of Llama.

Pair j of a head is (x[j], x[j + C/2]) and is turned by position · theta^(-2j/C). RxNN pairs neighbours instead;
`sqat.checkpoint.rxnn` permutes weights between the two, so that this is the only rotation in the package.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RotaryTables(NamedTuple):
    """Cosines and sines in float32, (T, C/2) or (B, 1, T, C/2)."""

    cos: Tensor
    sin: Tensor


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> RotaryTables:
    """Tables for positions (T,) shared by all rows, or (B, T)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float().unsqueeze(-1) / theta**exponents
    if angles.dim() == 3:
        angles = angles.unsqueeze(1)  # the same for every head
    return RotaryTables(angles.cos(), angles.sin())


def rotate(x_BHTC: Tensor, tables: RotaryTables) -> Tensor:
    """Turn every pair of `x_BHTC` (B, H, T, C) by its position's angle; the type of the input is kept."""
    first, second = x_BHTC.float().chunk(2, dim=-1)
    cos, sin = tables
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BHTC.dtype)
