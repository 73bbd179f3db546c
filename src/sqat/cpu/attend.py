"""Attention on CPUs: three alternatives to torch's own kernel, which computes nearly every score and masks half of
them.

- `attend_tiled`: training sequences of up to 1,024 tokens run a compiled loop (`attention.py`) over exactly the keys
  that each query sees.
- `attend_blocked`: longer ones run torch's kernel on a block of queries at a time, each with the keys before its end
  and in reach of its window, so that cost and memory under a window are linear in the length.
- `attend_exact`: all others run torch's kernel once, never in bfloat16, where it is up to four times slower.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqat.cpu.threads import available
from sqat.model.attend import attend, repeat_queries, take
from sqat.model.dispatch import implements, once_differentiable
from sqat.model.mask import AttentionMask

MOST_TOKENS = 1024  # longer sequences do not fit the caches, and torch's kernel catches up
MOST_WIDTH = 128

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@implements("kernel_dtype", "cpu", compiles=True)
def kernel_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


def fits_tiles(q, k, v, *, causal=True, mask=None, dropout=0.0):
    """Whether the loop supports these sizes and this mask, and is worth compiling (a prompt is read only once)."""
    square = q.shape[2] == k.shape[2] <= MOST_TOKENS and q.shape[3] <= MOST_WIDTH
    plain = q.dtype == torch.float32 and q.requires_grad and causal and not dropout
    return plain and square and (mask is None or is_band(mask)) and available()


@implements("attend", "cpu", fits=fits_tiles)
def attend_tiled(q_BHTC, k_BKTC, v_BKTC, *, mask=None, **_):
    q_BHTC = repeat_queries(q_BHTC, k_BKTC)
    first_BT = torch.zeros(1, q_BHTC.shape[2], dtype=torch.long) if mask is None else first_keys(mask)
    return TiledAttention.apply(q_BHTC, k_BKTC.float(), v_BKTC.float(), first_BT)


def is_band(mask: AttentionMask) -> bool:
    """Whether every query sees one contiguous range of keys that ends with its own (see :func:`first_keys`)."""
    others = (mask.first_key_B, mask.positions_S, mask.whole)
    plain = mask.causal and not mask.global_tokens and mask.num_queries == mask.num_keys
    return plain and all(tensor is None for tensor in others)


def first_keys(mask: AttentionMask) -> Tensor:
    """If `is_band`: the first key that each query sees, (B or 1, T)."""
    if "first" not in mask.made:
        queries = torch.arange(mask.num_queries)
        first_BT = mask.starts_BS.expand(-1, mask.num_queries)
        if mask.window is not None:
            first_BT = first_BT.maximum(queries - mask.window + 1)
        mask.made["first"] = first_BT.contiguous()
    return mask.made["first"]


class TiledAttention(torch.autograd.Function):
    """softmax(q·kᵀ / sqrt(C)) · v for float32 tensors, (B, H, T, C); query t sees keys first[t] to t."""

    @staticmethod
    def forward(ctx: Any, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, first_BT: Tensor) -> Tensor:
        from sqat.cpu.attention import attention

        q, k, v = (x.transpose(1, 2).contiguous() for x in (q_BHTC, k_BKTC, v_BKTC))
        out_BTHC, sums_BHT = attention(q, k, v, first_BT)
        ctx.save_for_backward(q, k, v, first_BT, out_BTHC, sums_BHT)
        return out_BTHC.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor | None, ...]:
        from sqat.cpu.attention import attention_backward

        grad_BTHC = grad_BHTC.float().transpose(1, 2).contiguous()
        return *(d.transpose(1, 2) for d in attention_backward(grad_BTHC, *ctx.saved_tensors)), None


def block_length(num_queries: int, *, masked: bool) -> int | None:
    """Queries per block; None if the plain kernel is faster (measured at 256 to 4,096 tokens)."""
    if num_queries > 1024:
        return 128 if masked or num_queries <= 2048 else None
    return 64 if num_queries > 64 or masked else None


def fits_blocks(q, k, v, *, causal=True, mask=None, dropout=0.0):
    return causal and not dropout and block_length(q.shape[2], masked=mask is not None) is not None


@implements("attend", "cpu", fits=fits_blocks)
def attend_blocked(q_BHTC, k_BKSC, v_BKSC, *, mask=None, **_):
    block = block_length(q_BHTC.shape[2], masked=mask is not None)
    mask = mask or AttentionMask(q_BHTC.shape[2], k_BKSC.shape[2], q_BHTC.device)
    q, k, v = _exact(repeat_queries(q_BHTC, k_BKSC), k_BKSC, v_BKSC)
    return BlockedAttention.apply(q, k, v, mask, block).to(q_BHTC.dtype)


class BlockedAttention(torch.autograd.Function):
    """softmax(q·kᵀ / sqrt(C) + mask) · v for float32 or float64 tensors, (B, H, T, C)."""

    @staticmethod
    def forward(ctx: Any, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: AttentionMask, block: int) -> Tensor:
        out_BHTC = torch.empty_like(q_BHTC)
        sums = []
        for start in range(0, q_BHTC.shape[2], block):
            rows = slice(start, min(start + block, q_BHTC.shape[2]))
            keys, added = mask.block(rows.start, rows.stop, q_BHTC.dtype)
            k, v = take(k_BKSC, keys), take(v_BKSC, keys)
            out_BHTC[:, :, rows], logsumexp = _forward(q_BHTC[:, :, rows], k, v, 0.0, False, attn_mask=added)
            sums.append(logsumexp)
        ctx.save_for_backward(q_BHTC, k_BKSC, v_BKSC, out_BHTC, *sums)
        ctx.mask, ctx.block = mask, block
        return out_BHTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTC, k_BKSC, v_BKSC, out_BHTC, *sums = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q_BHTC), torch.zeros_like(k_BKSC), torch.zeros_like(v_BKSC)
        for i, logsumexp in enumerate(sums):
            rows = slice(i * ctx.block, min((i + 1) * ctx.block, q_BHTC.shape[2]))
            keys, added = ctx.mask.block(rows.start, rows.stop, q_BHTC.dtype)
            q, out, grad = (x[:, :, rows] for x in (q_BHTC, out_BHTC, grad_BHTC))
            k, v = take(k_BKSC, keys), take(v_BKSC, keys)
            d_q[:, :, rows], *d_taken = _backward(grad, q, k, v, out, logsumexp, 0.0, False, attn_mask=added)
            for total, taken in zip((d_k, d_v), d_taken, strict=True):
                for part, own in zip(keys, taken.split([part.stop - part.start for part in keys], dim=2), strict=True):
                    total[:, :, part] += own
        return d_q, d_k, d_v, None, None


@implements("attend", "cpu")
def attend_exact(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, **kind: Any) -> Tensor:
    q, k, v = _exact(repeat_queries(q_BHTC, k_BKSC), k_BKSC, v_BKSC)
    return attend.plain(q, k, v, **kind).to(q_BHTC.dtype)  # type: ignore[attr-defined]


def _exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = kernel_dtype(tensors[0])
    return tuple(x.to(dtype) for x in tensors)
