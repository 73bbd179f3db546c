"""Scaled dot-product attention behind one function: the only place that picks a kernel.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim. Query head i reads key/value
head i // (H/K); where K is more than H (reverse SQA), key/value head i is read by query head i // (K/H), and there are
K heads of results.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.cpu import tiled
from sqat.cpu.blocked import BlockedAttention, block_length
from sqat.cuda import flex
from sqat.model import mask as masks
from sqat.model.mask import AttentionMask


def attend(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    *,
    causal: bool = True,
    mask: AttentionMask | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q·kᵀ / sqrt(C)) · v for grouped heads; (B, H or K, whichever is more, T, C).

    Args:
        q_BHTC, k_BKSC, v_BKSC: queries, keys and values; H a multiple of K or the other way. With `causal`, the queries
            stand at the end of the keys.
        mask: made by the caller for documents, left padding or a window; replaces `causal`.
        dropout: share of attention weights set to zero (0 in evaluation).
    """
    if q_BHTC.shape[1] < k_BKSC.shape[1]:  # reverse SQA
        q_BHTC = q_BHTC.repeat_interleave(k_BKSC.shape[1] // q_BHTC.shape[1], dim=1)
    num_queries, num_keys = q_BHTC.shape[2], k_BKSC.shape[2]
    if causal and not dropout and tiled.fits(q_BHTC, k_BKSC, mask):
        out_BHTC: Tensor = tiled.TiledAttention.apply(q_BHTC, k_BKSC.float(), v_BKSC.float(), mask)
        return out_BHTC
    eager_cpu = q_BHTC.device.type == "cpu" and not torch.compiler.is_compiling()
    if eager_cpu and k_BKSC.requires_grad:
        k_BKSC, v_BKSC = _a_head_for_each_thread(q_BHTC, k_BKSC, v_BKSC)
    blocked = eager_cpu and causal and not dropout
    if blocked and (block := block_length(num_queries, masked=mask is not None)):
        mask = mask or AttentionMask(num_queries, num_keys, q_BHTC.device)
        q, k, v = (x.to(kernel_dtype(x)) for x in (q_BHTC, k_BKSC, v_BKSC))
        return BlockedAttention.apply(q, k, v, mask, block).to(q_BHTC.dtype)
    if mask is None and causal and 1 < num_queries < num_keys:
        mask = AttentionMask(num_queries, num_keys, q_BHTC.device)
    if mask is None:
        return _kernel(q_BHTC, k_BKSC, v_BKSC, dropout, is_causal=causal and num_queries > 1)
    if not dropout and flex.fits(q_BHTC, mask):
        return flex.attend_flex(q_BHTC, k_BKSC, v_BKSC, mask)
    blocks = []
    for start in range(0, num_queries, masks.QUERY_BLOCK):
        stop = min(start + masks.QUERY_BLOCK, num_queries)
        part = mask.part(start, stop)
        q_block = q_BHTC[:, :, start:stop]
        blocks.append(_kernel(q_block, part.take(k_BKSC), part.take(v_BKSC), dropout, attn_mask=part.seen))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def kernel_dtype(x: Tensor) -> torch.dtype:
    """The type in which the kernel for `x` computes: on a CPU never bfloat16, where that is up to four times slower."""
    return torch.float32 if x.device.type == "cpu" and x.dtype == torch.bfloat16 else x.dtype


def _kernel(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, dropout: float, **kind: Any) -> Tensor:
    """torch's kernel."""
    grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
    if q_BHTC.device.type != "cpu":
        if grouped and q_BHTC.shape[2] == 1:  # decoding: a group's heads are so many queries, and keys are not copied
            q_BKGC = q_BHTC.unflatten(1, (k_BKSC.shape[1], -1)).squeeze(3)
            out_BKGC = F.scaled_dot_product_attention(q_BKGC, k_BKSC, v_BKSC, dropout_p=dropout, **kind)
            return out_BKGC.flatten(1, 2).unsqueeze(2)
        if grouped and "attn_mask" in kind:
            # With a mask, grouped heads would fall back to the kernel that keeps all scores.
            groups = q_BHTC.shape[1] // k_BKSC.shape[1]
            k_BKSC, v_BKSC = (x.repeat_interleave(groups, dim=1) for x in (k_BKSC, v_BKSC))
            grouped = False
        return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, dropout_p=dropout, enable_gqa=grouped, **kind)
    dtype = kernel_dtype(q_BHTC)
    if "attn_mask" in kind and kind["attn_mask"].dtype != torch.bool:
        kind["attn_mask"] = kind["attn_mask"].to(dtype)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.to(dtype) for x in (q_BHTC, k_BKSC, v_BKSC))
        out_BHTC = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=grouped, **kind)
    return out_BHTC.to(q_BHTC.dtype)


def _a_head_for_each_thread(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> tuple[Tensor, Tensor]:
    """Key/value heads repeated until there is one for each thread, or for each query head: torch's backward on CPUs
    gives a thread whole rows and key/value heads, and with fewer of them cores would wait (MQA, one long row).
    """
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    wanted = math.ceil(torch.get_num_threads() / (k_BKSC.shape[0] * k_BKSC.shape[1]))
    times = next(n for n in range(1, groups + 1) if groups % n == 0 and (n >= wanted or n == groups))
    if times == 1:
        return k_BKSC, v_BKSC
    return k_BKSC.repeat_interleave(times, dim=1), v_BKSC.repeat_interleave(times, dim=1)


def attend_naive(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, seen_BHTS: Tensor) -> Tensor:
    """The definition, for tests: every score written out, `seen_BHTS` says which count."""
    heads = max(q_BHTC.shape[1], k_BKSC.shape[1])
    q_BHTC, k_BHSC, v_BHSC = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (q_BHTC, k_BKSC, v_BKSC))
    scores_BHTS = q_BHTC @ k_BHSC.transpose(-1, -2) / q_BHTC.shape[-1] ** 0.5
    return scores_BHTS.masked_fill(~seen_BHTS, -torch.inf).softmax(dim=-1) @ v_BHSC
