"""Attention with any number of query heads, key/value heads, and any head_dim."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqat.config import heads_fit
from sqat.errors import ConfigError
from sqat.model.attend import attend, attention_weights, kernel_dtype, weigh
from sqat.model.cache import LayerCache, layer_cache, window_mask
from sqat.model.dispatch import autocast_dtype, like, load_plugins
from sqat.model.mask import AttentionMask, check_window
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
        check_window(window, global_tokens, causal)
        self.hidden_size = hidden_size
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
        mask: AttentionMask | Tensor | None = None,
        cache: LayerCache | None = None,
        need_weights: bool = False,
    ) -> Any:  # a Tensor, or with `need_weights` a pair of them
        """Attend: (B, T, D) to (B, T, D), or one sequence (T, D) to (T, D).

        Args:
            x_BTD: normalised input.
            rope: rotary tables for the positions of these tokens; by default positions continue those in the cache, or
                start at 0. A stack of layers computes them once.
            mask: see :class:`AttentionMask`; by default causal or not and windowed as the module was built. Or a tensor
                of shape (T, S), (B, T, S) or (B, 1 or heads, T, S) over all keys: boolean, true where a query may
                attend, or numbers that are added to the scores. It goes with the module's own causality and window,
                and all scores are kept in memory.
            cache: keys and values of earlier tokens, see :meth:`new_cache`; those of these tokens are appended.
            need_weights: also return the attention weights, (B, heads, T, S), at the cost of keeping all scores.

        Returns:
            the output, or with `need_weights` (output, weights). A query that may attend to nothing gets zeros.

        Raises:
            ConfigError: an input or mask of another shape or type.
        """
        if x_BTD.dim() == 2:
            found = self(x_BTD.unsqueeze(0), rope=rope, mask=mask, cache=cache, need_weights=need_weights)
            return tuple(part.squeeze(0) for part in found) if need_weights else found.squeeze(0)
        width = self.hidden_size
        if x_BTD.dim() != 3 or x_BTD.shape[2] != width:
            raise ConfigError(f"x has the shape {tuple(x_BTD.shape)}, but must have (B, T, {width}) or (T, {width})")
        if cache is not None and (not self.causal or len(cache.keys) != len(x_BTD)):
            needed = "be None where causal is false" if not self.causal else f"have {len(x_BTD)} rows, as x has"
            raise ConfigError(f"cache has {len(cache.keys)} rows, but must {needed}")
        x_BTD = x_BTD.to(autocast_dtype(x_BTD))  # once, not in each of the three projections
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
        given = None if isinstance(mask, AttentionMask) else mask
        own = mask if isinstance(mask, AttentionMask) else None
        if own is None and self.window is not None:
            own = window_mask(x_BTD.shape[1], cache, self.window, self.global_tokens, x_BTD.device)
        if cache is not None:
            k_BKSC, v_BKSC = cache.append(k_BKSC, v_BKSC)
        num_queries, num_keys = q_BHTC.shape[2], k_BKSC.shape[2]
        if own is not None and type(num_keys) is int and (own.num_queries, own.num_keys) != (num_queries, num_keys):
            raise ConfigError(
                f"mask is for {own.num_queries} queries and {own.num_keys} keys, but must be for {num_queries} and "
                f"{num_keys}"
            )
        dropout = self.dropout if self.training else 0.0
        weights_BHTS = None
        if given is not None or need_weights:
            own = own or AttentionMask(num_queries, num_keys, x_BTD.device, self.causal)
            bias = like(_bias(given, own.rows(), q_BHTC, num_keys, max(q_BHTC.shape[1], k_BKSC.shape[1])), q_BHTC)
            weights_BHTS = attention_weights(q_BHTC, k_BKSC, bias)
            out_BHTC = weigh(F.dropout(weights_BHTS, dropout), v_BKSC.to(dtype))
        else:
            out_BHTC = attend(q_BHTC, k_BKSC, v_BKSC.to(dtype), causal=self.causal, mask=own, dropout=dropout)
        out_BTD = self.out_proj(out_BHTC.transpose(1, 2).flatten(2).to(x_BTD.dtype))
        return (out_BTD, weights_BHTS) if need_weights else out_BTD

    def new_cache(self, batch_size: int, length: int) -> LayerCache:
        """An empty cache for `length` tokens of each of `batch_size` rows, in the weights' type and on their device; it
        rolls, and is never full, where a window is shorter.
        """
        weight = self.k_proj.weight
        shape = batch_size, weight.shape[0] // self.head_dim, length, self.head_dim
        return layer_cache(shape, self.window, self.global_tokens, None, device=weight.device, dtype=weight.dtype)

    @classmethod
    def from_multihead_attention(cls, other: nn.MultiheadAttention, *, causal: bool = False) -> Attention:
        """Self-attention with the weights of a :class:`torch.nn.MultiheadAttention`, and its results (but for rounding)
        on batch-first input; convert heads afterwards, or train on.

        Raises:
            ConfigError: it has keys or values of another width, `bias_k` or `add_zero_attn`.
        """
        if other.in_proj_weight is None or other.bias_k is not None or other.add_zero_attn:
            raise ConfigError(
                "the MultiheadAttention has kdim or vdim, add_bias_kv or add_zero_attn, but must be self-attention of "
                "one width without these"
            )
        biased = other.in_proj_bias is not None
        heads, width = other.num_heads, other.head_dim
        settings: dict[str, Any] = {"rope_theta": None, "causal": causal, "dropout": other.dropout}
        attention = cls(other.embed_dim, heads, heads, width, qkv_bias=biased, out_bias=biased, **settings)
        attention.to(device=other.in_proj_weight.device, dtype=other.in_proj_weight.dtype).train(other.training)
        state = {name: part for name, part in other.state_dict().items() if name.startswith("out_proj.")}
        for kind in ("weight", "bias") if biased else ("weight",):
            parts = getattr(other, f"in_proj_{kind}").chunk(3)
            state |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        attention.load_state_dict(state)
        return attention


def _bias(given: Tensor | None, seen: Tensor, q_BHTC: Tensor, num_keys: int, heads: int) -> Tensor:
    """What is added to scores: a mask tensor of any form, and minus infinity where the module itself hides a key."""
    bias = torch.zeros(seen.shape, dtype=q_BHTC.dtype, device=q_BHTC.device).masked_fill(~seen, -torch.inf)
    if given is None:
        return bias
    rows, num_queries = q_BHTC.shape[0], q_BHTC.shape[2]
    if not isinstance(given, Tensor) or not (given.dtype == torch.bool or given.is_floating_point()):
        found = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise ConfigError(f"mask is {found}, but must be an AttentionMask, or a tensor of booleans or floats")
    whole = given.unsqueeze(1) if given.dim() == 3 else given
    fits = given.dim() in (2, 3, 4) and whole.shape[-2:] == (num_queries, num_keys)
    if not fits or (given.dim() > 2 and (whole.shape[0] not in (1, rows) or whole.shape[1] not in (1, heads))):
        size = f"{num_queries}, {num_keys}"
        raise ConfigError(
            f"mask has the shape {tuple(given.shape)}, but must have ({size}), (1 or {rows}, {size}) or "
            f"(1 or {rows}, 1 or {heads}, {size})"
        )
    if whole.dtype == torch.bool:
        return bias.masked_fill(~whole, -torch.inf)
    return bias + whole.to(bias.dtype)
