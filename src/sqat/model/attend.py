"""Scaled dot-product attention behind one function.

Shape letters: B batch, T queries, S keys, H query heads, K key/value heads, C head_dim. Query head i reads key/value
head i // (H/K); where K is more than H (reverse SQA), key/value head i is read by query head i // (K/H), and there are
K heads of results.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter

from sqat.model import mask as masks
from sqat.model.dispatch import is_plain, like, operation, without_autocast
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
    # Sizes may be tensors (in torch.jit.trace) or symbols (in torch.export), which are no flags.
    grouped = True if q_BHTC.shape[1] != k_BKSC.shape[1] else False  # noqa: SIM210
    square = True if num_queries == num_keys else False  # noqa: SIM210
    if mask is None and causal and not square and num_queries > 1:
        mask = AttentionMask(num_queries, num_keys, q_BHTC.device)
    if hasattr(q_BHTC, "device_mesh") and q_BHTC.device.type == "cpu" and not dropout:  # no kernel takes DTensors there
        mask = mask or AttentionMask(num_queries, num_keys, q_BHTC.device, causal)
        return attend_naive(q_BHTC, k_BKSC, v_BKSC, like(mask.rows(), q_BHTC))
    # By its definition within `plain_torch`, since torch's kernels differentiate once.
    kernels = sdpa_kernel(SDPBackend.MATH) if is_plain() else nullcontext()
    with without_autocast(q_BHTC), kernels:  # the caller chose the type, see `kernel_dtype`
        if mask is None:
            return F.scaled_dot_product_attention(
                q_BHTC, k_BKSC, v_BKSC, dropout_p=dropout, is_causal=causal and square, enable_gqa=grouped
            )
        step = masks.QUERY_BLOCK
        starts = range(0, num_queries, step) if type(num_queries) is int else (0,)
        blocks = []
        for start in starts:
            stop = min(start + step, num_queries) if type(num_queries) is int else num_queries
            keys, seen = mask.block(start, stop)
            q, k, v = q_BHTC[:, :, start:stop], take(k_BKSC, keys), take(v_BKSC, keys)
            blocks.append(F.scaled_dot_product_attention(q, k, v, like(seen, q), dropout, enable_gqa=grouped))
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
    """The definition: every score written out, `seen_BHTS` says which count."""
    bias = torch.zeros_like(seen_BHTS, dtype=q_BHTC.dtype).masked_fill(~seen_BHTS, -torch.inf)
    return weigh(attention_weights(q_BHTC, k_BKSC, bias), v_BKSC)


def attention_weights(q_BHTC: Tensor, k_BKSC: Tensor, bias_BHTS: Tensor) -> Tensor:
    """softmax(q·kᵀ / sqrt(C) + bias), (B, H or K, T, S); zeros where the bias hides every key."""
    heads = max(q_BHTC.shape[1], k_BKSC.shape[1])
    q_BHTC, k_BHSC = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (q_BHTC, k_BKSC))
    scores_BHTS = q_BHTC @ k_BHSC.transpose(-1, -2) / q_BHTC.shape[-1] ** 0.5 + bias_BHTS
    nothing = (bias_BHTS == -torch.inf).all(dim=-1, keepdim=True)
    return scores_BHTS.masked_fill(nothing, 0.0).softmax(dim=-1).masked_fill(nothing, 0.0)


def weigh(weights_BHTS: Tensor, v_BKSC: Tensor) -> Tensor:
    """The weighted sums of values, (B, H, T, C)."""
    return weights_BHTS @ v_BKSC.repeat_interleave(weights_BHTS.shape[1] // v_BKSC.shape[1], dim=1)


# `FlopCounterMode` counts attention on CPUs by the formulas for GPUs, since torch has none for it.
for direction in ("", "_backward"):
    on_gpu = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{direction}")
    on_cpu = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{direction}")
    flop_counter.flop_registry.setdefault(on_cpu, flop_counter.flop_registry[on_gpu])
