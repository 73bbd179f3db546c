"""Attention on CPUs, some queries at a time, each with the keys that it may see and no others.

torch's kernel computes every score under a mask, and at a few hundred tokens nearly every score without one. Blocks of
queries with the keys before their end leave out almost half, in both passes; those of a window have the keys in its
reach, so that cost and memory are linear in the length.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqat.model.mask import AttentionMask

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def block_length(num_queries: int, *, masked: bool) -> int | None:
    """Queries to take at a time; `None` where the kernel alone is faster (measured at 256 to 4,096 tokens)."""
    if num_queries > 1024:
        return 128 if masked or num_queries <= 2048 else None
    return 64 if num_queries > 64 or masked else None


class BlockedAttention(torch.autograd.Function):
    """softmax(q·kᵀ / sqrt(C) + mask) · v for float32 or float64 tensors, (B, H, T, C)."""

    @staticmethod
    def forward(ctx: Any, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: AttentionMask, block: int) -> Tensor:
        out_BHTC = torch.empty_like(q_BHTC)
        sums = []
        for start in range(0, q_BHTC.shape[2], block):
            rows = slice(start, min(start + block, q_BHTC.shape[2]))
            part = mask.added(rows.start, rows.stop, q_BHTC.dtype)
            k, v = part.take(k_BKSC), part.take(v_BKSC)
            out, logsumexp = _forward(q_BHTC[:, :, rows], k, v, 0.0, False, attn_mask=part.seen)
            out_BHTC[:, :, rows] = out
            sums.append(logsumexp)
        ctx.save_for_backward(q_BHTC, k_BKSC, v_BKSC, out_BHTC, *sums)
        ctx.mask, ctx.block = mask, block
        return out_BHTC

    @staticmethod
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTC, k_BKSC, v_BKSC, out_BHTC, *sums = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q_BHTC), torch.zeros_like(k_BKSC), torch.zeros_like(v_BKSC)
        for i, logsumexp in enumerate(sums):
            rows = slice(i * ctx.block, min((i + 1) * ctx.block, q_BHTC.shape[2]))
            part = ctx.mask.added(rows.start, rows.stop, q_BHTC.dtype)
            q, out, grad = (x[:, :, rows] for x in (q_BHTC, out_BHTC, grad_BHTC))
            k, v = part.take(k_BKSC), part.take(v_BKSC)
            d_q[:, :, rows], d_k_part, d_v_part = _backward(
                grad, q, k, v, out, logsumexp, 0.0, False, attn_mask=part.seen
            )
            part.add(d_k, d_k_part)
            part.add(d_v, d_v_part)
        return d_q, d_k, d_v, None, None
