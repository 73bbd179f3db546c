"""Attention on CPUs, some queries at a time, each with the keys that it may see and no others.

torch's kernel computes every score under a mask, and at a few hundred tokens nearly every score without one. Blocks of
queries with the keys before their end leave out almost half, in both passes.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Mask(Protocol):
    def added(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of queries start … stop, (B or 1, 1, stop - start, keys)."""


def block_length(num_queries: int, *, masked: bool) -> int | None:
    """Queries to take at a time; `None` where the kernel alone is faster (measured at 256 to 4,096 tokens)."""
    if num_queries > 1024:
        return 128 if masked or num_queries <= 2048 else None
    return 64 if num_queries > 64 or masked else None


class BlockedAttention(torch.autograd.Function):
    """softmax(q·kᵀ / sqrt(C) + mask) · v for float32 or float64 tensors, (B, H, T, C)."""

    @staticmethod
    def forward(ctx: Any, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Mask, block: int) -> Tensor:
        out_BHTC = torch.empty_like(q_BHTC)
        sums = []
        for start in range(0, q_BHTC.shape[2], block):
            rows = slice(start, min(start + block, q_BHTC.shape[2]))
            seen = mask.added(rows.start, rows.stop, q_BHTC.dtype)
            keys = slice(seen.shape[-1])
            out, logsumexp = _forward(
                q_BHTC[:, :, rows], k_BKSC[:, :, keys], v_BKSC[:, :, keys], 0.0, False, attn_mask=seen
            )
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
            seen = ctx.mask.added(rows.start, rows.stop, q_BHTC.dtype)
            keys = slice(seen.shape[-1])
            q, out, grad = (x[:, :, rows] for x in (q_BHTC, out_BHTC, grad_BHTC))
            k, v = k_BKSC[:, :, keys], v_BKSC[:, :, keys]
            parts = _backward(grad, q, k, v, out, logsumexp, 0.0, False, attn_mask=seen)
            d_q[:, :, rows] = parts[0]
            d_k[:, :, keys] += parts[1]
            d_v[:, :, keys] += parts[2]
        return d_q, d_k, d_v, None, None
