"""Tokens sorted by expert.

Shape letters: N tokens, k experts per token, E experts, R rows of the sorted buffer.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Dispatch(NamedTuple):
    """A buffer with a row for every (token, expert) selection, those of one expert together."""

    token_R: Tensor  # which token a row is; token 0 in rows that only fill up
    place_Nk: Tensor  # which row a selection has
    spans: list[slice]  # each expert's rows


def dispatch(experts_Nk: Tensor, num_experts: int, block: int = 1) -> Dispatch:
    """Sort selections by expert, filling up each expert's rows to a multiple of `block` (waits for the device).

    There is room for the worst case, so that R does not depend on who chose what: buffers of ever new sizes fragment
    memory.
    """
    selections = experts_Nk.flatten()
    counts_E = torch.bincount(selections, minlength=num_experts)
    room_E = (counts_E + block - 1).div(block, rounding_mode="floor") * block
    order = selections.argsort(stable=True)
    shift_E = (room_E.cumsum(0) - room_E) - (
        counts_E.cumsum(0) - counts_E
    )  # by how much filling moves an expert's rows
    row = torch.arange(len(order), device=order.device) + shift_E[selections[order]]
    ends = list(accumulate(room_E.tolist()))
    token_R = order.new_zeros(len(order) + num_experts * (block - 1))
    token_R[row] = order.div(experts_Nk.shape[1], rounding_mode="floor")
    place = torch.empty_like(order)
    place[order] = row
    spans = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return Dispatch(token_R, place.view_as(experts_Nk), spans)
