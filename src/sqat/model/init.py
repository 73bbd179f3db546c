"""Initial weights of the whole model, in one place.

Two schemes. "normal": every matrix N(0, 0.02), the two that write to the residual stream scaled by 1/sqrt(2·layers)
(GPT-2). "torch": what PyTorch's own layers start from, as the card's models did: uniform within ±1/sqrt(fan_in),
embedding N(0, 1).

Every tensor is drawn from a generator of its own, seeded by its name. So, for one seed, models of different head counts
start equal in every tensor they have in common, and can be compared pair by pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sqat.model.block import Block
from sqat.model.moe import MoE

if TYPE_CHECKING:
    from sqat.model.decoder import Decoder

STD = 0.02

Draw = Callable[[Tensor], torch.Generator]  # a parameter's own generator


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Draw all weights; norms start at one."""
    names = {parameter: name for name, parameter in decoder.named_parameters()}

    def draw(parameter: Tensor) -> torch.Generator:
        digest = hashlib.sha256(f"{seed} {names[parameter]}".encode()).digest()  # type: ignore[index]
        return torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    scheme = decoder.config.init
    _embedding(decoder, scheme, draw)
    residual_std = STD / (2 * decoder.config.num_layers) ** 0.5
    for block in decoder.layers:
        assert isinstance(block, Block)
        attention = block.attention
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            _matrix(projection.weight, projection.bias, scheme, STD, draw)
        _matrix(attention.out_proj.weight, attention.out_proj.bias, scheme, residual_std, draw)
        if isinstance(block.feedforward, MoE):
            moe = block.feedforward
            _matrix(moe.router.weight, None, scheme, STD, draw)
            _matrix(moe.fc1_weight, moe.fc1_bias, scheme, STD, draw)
            _matrix(moe.fc2_weight, moe.fc2_bias, scheme, residual_std, draw)
        else:
            dense = block.feedforward
            _matrix(dense.fc1.weight, dense.fc1.bias, scheme, STD, draw)
            _matrix(dense.fc2.weight, dense.fc2.bias, scheme, residual_std, draw)


def _embedding(decoder: Decoder, scheme: str, draw: Draw) -> None:
    embedding, head = decoder.embedding.weight, decoder.head
    nn.init.normal_(embedding, std=STD if scheme == "normal" else 1.0, generator=draw(embedding))
    if decoder.config.tie_embeddings:
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    else:
        _matrix(head.weight, head.bias, scheme, STD, draw)


def _matrix(weight: Tensor, bias: Tensor | None, scheme: str, std: float, draw: Draw) -> None:
    """Fill a matrix, or a stack of them (the last axis is the input), and its bias."""
    if scheme == "normal":
        nn.init.normal_(weight, std=std, generator=draw(weight))
        if bias is not None:
            nn.init.zeros_(bias)
        return
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound, generator=draw(weight))
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound, generator=draw(bias))
