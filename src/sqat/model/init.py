"""Initial weights of the whole model, in one place.

Two schemes. "normal": every matrix N(0, 0.02), the two that write to the residual stream scaled by 1/sqrt(2·layers)
(GPT-2). "torch": what PyTorch's own layers start from, as the card's models did: uniform within ±1/sqrt(fan_in),
embedding N(0, 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sqat.model.block import Block
from sqat.model.moe import MoE

if TYPE_CHECKING:
    from sqat.model.decoder import Decoder

STD = 0.02


@torch.no_grad()
def initialise(decoder: Decoder) -> None:
    """Draw all weights from torch's global generator, in a fixed order; norms start at one."""
    scheme = decoder.config.init
    _embedding(decoder, scheme)
    residual_std = STD / (2 * decoder.config.num_layers) ** 0.5
    for block in decoder.layers:
        assert isinstance(block, Block)
        attention = block.attention
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            _matrix(projection.weight, projection.bias, scheme, STD)
        _matrix(attention.out_proj.weight, attention.out_proj.bias, scheme, residual_std)
        if isinstance(block.feedforward, MoE):
            moe = block.feedforward
            _matrix(moe.router.weight, None, scheme, STD)
            _matrix(moe.fc1_weight, moe.fc1_bias, scheme, STD)
            _matrix(moe.fc2_weight, moe.fc2_bias, scheme, residual_std)
        else:
            dense = block.feedforward
            _matrix(dense.fc1.weight, dense.fc1.bias, scheme, STD)
            _matrix(dense.fc2.weight, dense.fc2.bias, scheme, residual_std)


def _embedding(decoder: Decoder, scheme: str) -> None:
    nn.init.normal_(decoder.embedding.weight, std=STD if scheme == "normal" else 1.0)
    if decoder.config.tie_embeddings:
        if decoder.head.bias is not None:
            nn.init.zeros_(decoder.head.bias)
    else:
        _matrix(decoder.head.weight, decoder.head.bias, scheme, STD)


def _matrix(weight: Tensor, bias: Tensor | None, scheme: str, std: float) -> None:
    """Fill a matrix, or a stack of them (the last axis is the input), and its bias."""
    if scheme == "normal":
        nn.init.normal_(weight, std=std)
        if bias is not None:
            nn.init.zeros_(bias)
        return
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)
