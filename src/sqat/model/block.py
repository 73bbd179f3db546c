"""One layer: attention and feed-forward, each behind a norm and added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.model.attention import Attention
from sqat.model.cache import LayerCache
from sqat.model.feedforward import FeedForward
from sqat.model.mask import AttentionMask
from sqat.model.moe import MoE, RouterStats
from sqat.model.norm import make_norm
from sqat.model.rope import RotaryTables


class Block(nn.Module):
    """`x + attention(norm1(x))`, then `x + feedforward(norm2(x))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.attention = Attention(
            config.hidden_size,
            config.num_query_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            out_bias=config.attention_out_bias,
            rope_theta=config.rope_theta,
            dropout=config.attention_dropout,
            window=config.window,
            global_tokens=config.global_tokens,
        )
        self.norm2 = make_norm(config.norm, config.hidden_size, config.norm_eps)
        self.feedforward = MoE(config) if config.is_moe else FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        rope: RotaryTables,
        mask: AttentionMask | None = None,
        cache: LayerCache | None = None,
        real_BT: Tensor | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """(B, T, D) to (B, T, D), and the router's statistics over the tokens where `real_BT` holds (`None` if the
        layer is dense).
        """
        x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rope=rope, mask=mask, cache=cache)
        normed = self.norm2(x_BTD)
        if isinstance(self.feedforward, MoE):
            update, stats = self.feedforward(normed, real_BT)
            return x_BTD + update, stats
        return x_BTD + self.feedforward(normed), None
