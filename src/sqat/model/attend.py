"""Scaled dot-product attention behind one function: the only place that picks a kernel.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim. Query head i reads key/value
head i // (H/K).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.model.blocked import BlockedAttention, block_length

# Masks are made for this many queries at a time, so that memory stays linear in the sequence length.
QUERY_BLOCK = 1024


@dataclass(eq=False)
class AttentionMask:
    """Which keys each query sees, where "all before it" is not the whole answer.

    The T queries stand at the end of the S keys: query t is at key position S - T + t.
    """

    num_queries: int
    num_keys: int
    device: torch.device
    causal: bool = True
    documents_BS: Tensor | None = None  # queries see keys of their own document only
    first_key_B: Tensor | None = None  # keys before this one are left padding

    whole: Tensor | None = None  # all rows, where they are kept, as the kernel wants them

    def keep(self) -> Self:
        """Make all rows now, if they are few, so that a stack of layers makes them once."""
        if self.num_queries <= QUERY_BLOCK:
            seen = self.rows()
            self.whole = _added(seen, torch.float32) if self.device.type == "cpu" else seen
        return self

    def added(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """:meth:`rows` as what is added to scores: zero where a key is seen, minus infinity elsewhere."""
        num_keys = self.num_keys - self.num_queries + stop if self.causal else self.num_keys
        rows = self.rows(start, stop) if self.whole is None else self.whole[:, :, start:stop, :num_keys]
        return _added(rows, dtype) if rows.dtype == torch.bool else rows.to(dtype)

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Visibility of queries start … stop, boolean, (B or 1, 1, stop - start, S); a causal one's keys end at its
        last query.
        """
        stop = self.num_queries if stop is None else stop
        offset = self.num_keys - self.num_queries
        num_keys = offset + stop if self.causal else self.num_keys
        queries = torch.arange(offset + start, offset + stop, device=self.device).view(1, -1, 1)
        keys = torch.arange(num_keys, device=self.device).view(1, 1, -1)
        seen = keys <= queries if self.causal else torch.ones_like(keys <= queries)
        if self.documents_BS is not None:
            documents = self.documents_BS
            seen = seen & (documents[:, offset + start : offset + stop, None] == documents[:, None, :num_keys])
        if self.first_key_B is not None:
            # A padded query sees itself, so that no row of the softmax is empty; nothing reads its result.
            seen = seen & ((keys >= self.first_key_B.view(-1, 1, 1)) | (keys == queries))
        return seen.unsqueeze(1)


def attend(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    *,
    causal: bool = True,
    mask: AttentionMask | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q·kᵀ / sqrt(C)) · v for grouped heads; (B, H, T, C).

    Args:
        q_BHTC, k_BKSC, v_BKSC: queries, keys and values; H a multiple of K. With `causal`, the queries stand at the end
            of the keys.
        mask: made by the caller for documents or left padding; replaces `causal`.
        dropout: share of attention weights set to zero (0 in evaluation).
    """
    num_queries, num_keys = q_BHTC.shape[2], k_BKSC.shape[2]
    blocked = q_BHTC.device.type == "cpu" and causal and not dropout and not torch.compiler.is_compiling()
    if blocked and (block := block_length(num_queries, masked=mask is not None)):
        mask = mask or AttentionMask(num_queries, num_keys, q_BHTC.device)
        q, k, v = (x.to(kernel_dtype(x)) for x in (q_BHTC, k_BKSC, v_BKSC))
        return BlockedAttention.apply(q, k, v, mask, block).to(q_BHTC.dtype)
    if mask is None and causal and 1 < num_queries < num_keys:
        mask = AttentionMask(num_queries, num_keys, q_BHTC.device)
    if mask is None:
        return _kernel(q_BHTC, k_BKSC, v_BKSC, dropout, is_causal=causal and num_queries > 1)
    blocks = []
    for start in range(0, num_queries, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, num_queries)
        seen = mask.rows(start, stop) if mask.whole is None else mask.whole[:, :, start:stop]
        keys = slice(seen.shape[-1])
        q_block = q_BHTC[:, :, start:stop]
        blocks.append(_kernel(q_block, k_BKSC[:, :, keys], v_BKSC[:, :, keys], dropout, attn_mask=seen))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


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


def attend_naive(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, seen_BHTS: Tensor) -> Tensor:
    """The definition, for tests: every score written out, `seen_BHTS` says which count."""
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    k_BHSC, v_BHSC = (x.repeat_interleave(groups, dim=1) for x in (k_BKSC, v_BKSC))
    scores_BHTS = q_BHTC @ k_BHSC.transpose(-1, -2) / q_BHTC.shape[-1] ** 0.5
    return scores_BHTS.masked_fill(~seen_BHTS, -torch.inf).softmax(dim=-1) @ v_BHSC
