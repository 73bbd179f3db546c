"""Attention with any number of query heads, key/value heads, and any head_dim."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sqat.config import heads_fit
from sqat.errors import ConfigError
from sqat.model.attend import attend, kernel_dtype
from sqat.model.cache import LayerCache, window_mask
from sqat.model.dispatch import load_plugins
from sqat.model.mask import AttentionMask
from sqat.model.rope import RotaryTables, rotary_tables, rotate


class Attention(nn.Module):
    """Self-attention with any number of query heads: MHA, GQA, MQA and every SQA variant (arXiv 2510.01817).

    Usable on its own: `Attention(512, 4, 2, 64)(x)` maps (B, T, 512) to (B, T, 512) at half the attention cost of
    eight heads.

    Args:
        hidden_size: D, width of input and output.
        num_query_heads: Hq; cost is proportional to it.
        num_kv_heads: Hkv, a divisor of Hq; or a multiple of it (reverse SQA), in which case query head i serves the
            Hkv/Hq key/value heads from i·Hkv/Hq on, and the output projection reads Hkv heads.
        head_dim: C, even.
        qkv_bias, out_bias: whether the projections have biases.
        rope_theta: base of the rotary embedding (arXiv 2104.09864); None for no positions.
        causal: whether a token attends only to itself and earlier tokens.
        dropout: probability of dropping an attention weight in training.
        window: how many positions a token attends to, itself included; None for all earlier ones.
        global_tokens: how many positions at the start all later tokens attend to; needs a window.

    Raises:
        ConfigError: head counts do not fit together, head_dim is odd, a window is not causal, or global tokens have no
            window.
    """

    def __init__(
        self,
        hidden_size: int,
        num_query_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        rope_theta: float | None = 10000.0,
        causal: bool = True,
        dropout: float = 0.0,
        window: int | None = None,
        global_tokens: int = 0,
    ) -> None:
        super().__init__()
        load_plugins()
        if min(hidden_size, num_query_heads, num_kv_heads, head_dim) < 1:
            sizes = (hidden_size, num_query_heads, num_kv_heads, head_dim)
            raise ConfigError(
                f"hidden_size, num_query_heads, num_kv_heads, head_dim are {sizes}, but must be at least 1"
            )
        if not heads_fit(num_query_heads, num_kv_heads):
            raise ConfigError(
                f"num_kv_heads is {num_kv_heads}, but must divide num_query_heads ({num_query_heads}) or be a multiple"
            )
        if rope_theta is not None and head_dim % 2:
            raise ConfigError(f"head_dim is {head_dim}, but must be even, since rotary embedding turns pairs")
        _check_window(window, global_tokens, causal)
        self.window = window
        self.global_tokens = global_tokens
        self.head_dim = head_dim
        self.rope_theta = rope_theta
        self.causal = causal
        self.dropout = dropout
        self.q_proj = nn.Linear(hidden_size, num_query_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(max(num_query_heads, num_kv_heads) * head_dim, hidden_size, bias=out_bias)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rope: RotaryTables | None = None,
        mask: AttentionMask | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attend: (B, T, D) to (B, T, D).

        Args:
            x_BTD: normalised input.
            rope: rotary tables for the positions of these tokens; by default positions continue those in the cache, or
                start at 0. A stack of layers computes them once.
            mask: see :class:`AttentionMask`; by default causal or not and windowed as the module was built.
            cache: keys and values of earlier tokens; those of these tokens are appended.
        """
        if torch.is_autocast_enabled(x_BTD.device.type):  # once, not in each of the three projections
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        q_BHTC, k_BKSC, v_BKSC = (
            projection(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dtype = kernel_dtype(x_BTD)
        if self.rope_theta is not None:
            if rope is None:
                start = 0 if cache is None else cache.length
                positions = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)
                rope = rotary_tables(positions, self.head_dim, self.rope_theta)
            q_BHTC, k_BKSC = rotate(q_BHTC, rope, dtype), rotate(k_BKSC, rope, dtype)
        if mask is None and self.window is not None:
            mask = window_mask(x_BTD.shape[1], cache, self.window, self.global_tokens, x_BTD.device)
        if cache is not None:
            k_BKSC, v_BKSC = cache.append(k_BKSC, v_BKSC)
        dropout = self.dropout if self.training else 0.0
        out_BHTC = attend(q_BHTC, k_BKSC, v_BKSC.to(dtype), causal=self.causal, mask=mask, dropout=dropout)
        return self.out_proj(out_BHTC.transpose(1, 2).flatten(2).to(x_BTD.dtype))


def _check_window(window: int | None, global_tokens: int, causal: bool) -> None:
    if window is not None and window < 1:
        raise ConfigError(f"window is {window}, but must be at least 1, or None for no window")
    if window is not None and not causal:
        raise ConfigError(f"window is {window}, but must be None where causal is false")
    if global_tokens < 0 or (global_tokens and window is None):
        right = "0 (none) or more" if window is not None else "0 where window is None"
        raise ConfigError(f"global_tokens is {global_tokens}, but must be {right}")
