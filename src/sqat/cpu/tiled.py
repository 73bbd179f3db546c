"""Attention of training sequences on CPUs by a compiled loop, which computes the scores that count and no others.

Shape letters: B batch, T tokens, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqat import cpu as kernels
from sqat.model.mask import AttentionMask

MOST_TOKENS = 1024  # longer ones leave the caches, and torch's kernel gains on us
MOST_WIDTH = 128


def fits(q_BHTC: Tensor, k_BKSC: Tensor, mask: AttentionMask | None) -> bool:
    """Whether the loop can compute causal attention of these, and is worth being compiled (a prompt is read once)."""
    plain = q_BHTC.dtype == torch.float32 and q_BHTC.device.type == "cpu" and q_BHTC.shape[1] >= k_BKSC.shape[1]
    return plain and q_BHTC.requires_grad and serves(q_BHTC.shape[2], k_BKSC.shape[2], q_BHTC.shape[3], mask)


def serves(num_queries: int, num_keys: int, head_dim: int, mask: AttentionMask | None) -> bool:
    """Whether the loop knows such masks and sizes."""
    square = num_queries == num_keys <= MOST_TOKENS and head_dim <= MOST_WIDTH
    return square and (mask is None or mask.is_band) and kernels.available()


class TiledAttention(torch.autograd.Function):
    """softmax(q·kᵀ / sqrt(C)) · v for float32 tensors, (B, H, T, C); query t sees keys first[t] to t."""

    @staticmethod
    def forward(ctx: Any, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask: AttentionMask | None) -> Tensor:
        from sqat.cpu.attention import attention

        first_BT = torch.zeros(1, q_BHTC.shape[2], dtype=torch.long) if mask is None else mask.first_keys()
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q_BHTC, k_BKTC, v_BKTC))
        out_BTHC, sums_BHT = attention(q, k, v, first_BT)
        ctx.save_for_backward(q, k, v, first_BT, out_BTHC, sums_BHT)
        return out_BTHC.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor | None, ...]:
        from sqat.cpu.attention import attention_backward

        grad_BTHC = grad_BHTC.float().transpose(1, 2).contiguous()
        return *(d.transpose(1, 2) for d in attention_backward(grad_BTHC, *ctx.saved_tensors)), None
