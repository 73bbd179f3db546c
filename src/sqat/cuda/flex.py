"""Windowed attention on GPUs by torch's FlexAttention: the mask is a function, and masked blocks are skipped.

Shape letters: B batch (1 where rows are alike), T queries, S keys, H query heads, K key/value heads, C head_dim; in
units of `BLOCK`: M blocks of queries, N blocks of keys.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sqat.model.attend import repeat_queries
from sqat.model.dispatch import implements
from sqat.model.mask import AttentionMask

BLOCK = 128  # queries and keys per block, as in the kernel
HAS_COMPILER = importlib.util.find_spec("triton") is not None  # without it torch would compute every score


def fits(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, mask: AttentionMask | None = None, dropout: float = 0.0
) -> bool:
    """Whether there is a window and enough queries; with few, masked SDPA is faster."""
    if mask is None or mask.window is None or mask.positions_S is not None or dropout:
        return False
    return HAS_COMPILER and q.shape[2] >= BLOCK and q.shape[3] >= 16


@implements("attend", "cuda", fits=fits, compiles=True)
def attend_flex(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, *, mask: AttentionMask, **_: Any) -> Tensor:
    """softmax(q·kᵀ / sqrt(C) + mask) · v for grouped heads, (B, H, T, C); the block mask is made once for a mask."""
    q_BHTC = repeat_queries(q_BHTC, k_BKSC)
    if "flex" not in mask.made:
        mask.made["flex"] = block_mask(mask)
    grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
    out_BHTC: Tensor = _run(compiled=not torch.compiler.is_compiling())(
        q_BHTC, k_BKSC, v_BKSC, block_mask=mask.made["flex"], enable_gqa=grouped
    )
    return out_BHTC


def _run(*, compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention  # slow to import

    plain: Any = flex_attention
    return _compiled() if compiled else plain


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(_run(compiled=False))


def block_mask(mask: AttentionMask) -> Any:
    """Which blocks of keys each block of queries needs, and the function that says which of their keys it sees.

    Made from positions alone, without waiting for the device and without the dense mask that torch's own
    `create_block_mask` makes unless it is compiled.
    """
    from torch.nn.attention.flex_attention import BlockMask

    needed_BMN = needed_blocks(mask)
    counts_B1M = needed_BMN.sum(dim=-1, dtype=torch.int32).unsqueeze(1)
    order_B1MN = needed_BMN.int().argsort(dim=-1, descending=True, stable=True).int().unsqueeze(1)
    lengths, sees = (mask.num_queries, mask.num_keys), mask.visible()
    blocks: Any = functools.partial(BlockMask.from_kv_blocks, BLOCK_SIZE=BLOCK, seq_lengths=lengths)
    return blocks(counts_B1M, order_B1MN, mask_mod=lambda row, head, query, key: sees(row, query, key))


def needed_blocks(mask: AttentionMask) -> Tensor:
    """True where any query of the block may see any of the keys, (B, M, N): those in reach of the window, and the
    global tokens of the first query's document (a later document's begin within reach).
    """
    assert mask.window is not None
    offset = mask.num_keys - mask.num_queries
    first_query_M1 = torch.arange(offset, mask.num_keys, BLOCK, device=mask.device).unsqueeze(1)
    last_query_M1 = (first_query_M1 + BLOCK - 1).clamp(max=mask.num_keys - 1)
    first_key_N = torch.arange(0, mask.num_keys, BLOCK, device=mask.device)
    last_key_N = first_key_N + BLOCK - 1
    needed_BMN = (last_key_N > first_query_M1 - mask.window).unsqueeze(0)
    if mask.global_tokens:
        starts_BS = mask.starts_BS
        start_BM1 = (starts_BS if starts_BS.shape[1] == 1 else starts_BS[:, offset::BLOCK]).unsqueeze(2)
        needed_BMN = needed_BMN | ((last_key_N >= start_BM1) & (first_key_N < start_BM1 + mask.global_tokens))
    return needed_BMN & (first_key_N <= last_query_M1)
