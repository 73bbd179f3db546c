"""Scaled dot-product attention behind one function.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim. Query head i reads key/value
head i // (H/K); where K is more than H (reverse SQA), key/value head i is read by query head i // (K/H), and there are
K heads of results.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.model import mask as masks
from sqat.model.dispatch import operation
from sqat.model.mask import AttentionMask


@operation
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
            are the last of the keys.
        mask: made by the caller for documents, left padding or a window; replaces `causal`.
        dropout: share of attention weights set to zero (0 in evaluation).
    """
    q_BHTC, num_queries, num_keys = repeat_queries(q_BHTC, k_BKSC), q_BHTC.shape[2], k_BKSC.shape[2]
    grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
    if mask is None and causal and 1 < num_queries < num_keys:
        mask = AttentionMask(num_queries, num_keys, q_BHTC.device)
    with torch.autocast(q_BHTC.device.type, enabled=False):  # the caller chose the type, see `kernel_dtype`
        if mask is None:
            is_causal = causal and num_queries > 1
            return F.scaled_dot_product_attention(
                q_BHTC, k_BKSC, v_BKSC, dropout_p=dropout, is_causal=is_causal, enable_gqa=grouped
            )
        blocks = []
        for start in range(0, num_queries, masks.QUERY_BLOCK):
            stop = min(start + masks.QUERY_BLOCK, num_queries)
            keys, seen = mask.block(start, stop)
            q, k, v = q_BHTC[:, :, start:stop], take(k_BKSC, keys), take(v_BKSC, keys)
            blocks.append(F.scaled_dot_product_attention(q, k, v, seen, dropout, enable_gqa=grouped))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def repeat_queries(q_BHTC: Tensor, k_BKSC: Tensor) -> Tensor:
    """Queries repeated where there are more key/value heads (reverse SQA)."""
    heads, kv_heads = q_BHTC.shape[1], k_BKSC.shape[1]
    return q_BHTC if heads >= kv_heads else q_BHTC.repeat_interleave(kv_heads // heads, dim=1)


def take(x_BKSC: Tensor, keys: list[slice]) -> Tensor:
    """The keys or values of :meth:`AttentionMask.reach`."""
    parts = [x_BKSC[:, :, part] for part in keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@operation
def kernel_dtype(x: Tensor) -> torch.dtype:
    """The type in which :func:`attend` computes with `x`: what queries and keys are rotated into."""
    return x.dtype


def attend_naive(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, seen_BHTS: Tensor) -> Tensor:
    """The definition, for tests: every score written out, `seen_BHTS` says which count."""
    heads = max(q_BHTC.shape[1], k_BKSC.shape[1])
    q_BHTC, k_BHSC, v_BHSC = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (q_BHTC, k_BKSC, v_BKSC))
    scores_BHTS = q_BHTC @ k_BHSC.transpose(-1, -2) / q_BHTC.shape[-1] ** 0.5
    return scores_BHTS.masked_fill(~seen_BHTS, -torch.inf).softmax(dim=-1) @ v_BHSC
