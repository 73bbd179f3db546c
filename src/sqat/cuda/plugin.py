"""Registers the GPU implementations of the model's operations; importing this module is enough."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sqat.cuda import experts, flex
from sqat.model.attend import attend
from sqat.model.dispatch import implements
from sqat.model.mask import AttentionMask
from sqat.model.moe import by_expert

__all__ = ["experts", "flex"]


def _one_query(q: Tensor, k: Tensor, v: Tensor, **kind: Any) -> bool:
    return q.shape[2] == 1 and q.shape[1] > k.shape[1]


@implements("attend", "cuda", fits=_one_query, compiles=True)
def attend_from_one(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, *, mask: AttentionMask | None = None, dropout: float = 0.0, **_: Any
) -> Tensor:
    """Decoding: the query heads of a group are treated as queries of one head, so keys are not copied."""
    q_BKGC = q_BHTC.unflatten(1, (k_BKSC.shape[1], -1)).squeeze(3)
    seen = None if mask is None else mask.block(0, 1)[1]
    return F.scaled_dot_product_attention(q_BKGC, k_BKSC, v_BKSC, seen, dropout).flatten(1, 2).unsqueeze(2)


def _masked_groups(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, mask: AttentionMask | None = None, dropout: float = 0.0
) -> bool:
    return q.shape[1] > k.shape[1] and (mask is not None or (causal and q.shape[2] < k.shape[2]))


@implements("attend", "cuda", fits=_masked_groups, compiles=True)
def attend_in_groups(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, **kind: Any) -> Tensor:
    """With a mask, grouped heads would fall back to the kernel that stores all scores, so heads are repeated."""
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    k_BHSC, v_BHSC = (x.repeat_interleave(groups, dim=1) for x in (k_BKSC, v_BKSC))
    return attend.plain(q_BHTC, k_BHSC, v_BHSC, **kind)  # type: ignore[attr-defined]


@implements("sum_by_expert", "cuda", compiles=True)
def sum_by_expert(values_Nk: Tensor, experts_Nk: Tensor, num_experts: int) -> Tensor:
    """Sum within rows first: thousands of atomic additions to a few addresses would serialise."""
    return by_expert(values_Nk, experts_Nk, num_experts).sum(dim=0)
