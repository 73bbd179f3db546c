"""The whole model by its definitions: the naive twin of every fast path, in plain autograd.

Shape letters: B rows, T tokens, H query heads, C head_dim, N tokens of all rows, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sqat.data.batches import Batch
from sqat.model import Decoder
from sqat.model.attend import attend_naive
from sqat.model.attention import Attention
from sqat.model.decoder import Block
from sqat.model.mask import AttentionMask
from sqat.model.moe import Experts, MoE, RouterStats, router_stats, run_experts_naive
from sqat.model.rope import rotary_tables, rotate_naive
from sqat.train.loss import cross_entropy_naive, router_loss


def loss_naive(model: Decoder, batch: Batch, router_weight: float = 0.01) -> Tensor:
    """What :class:`sqat.train.step.TrainingLoss` computes for rows that are one document each, without dropout: mean
    cross-entropy over the targets, plus the balanced router loss.
    """
    x_BTD = F.embedding(batch.inputs, model.embedding.weight)
    routers = []
    for block in model.layers:
        assert isinstance(block, Block)
        x_BTD = x_BTD + _attention(block.attention, block.norm1(x_BTD))
        normed = block.norm2(x_BTD)
        if isinstance(block.feedforward, MoE):
            update, stats = _moe(block.feedforward, normed)
            routers.append(stats)
        else:
            update = block.feedforward(normed)
        x_BTD = x_BTD + update
    hidden_ND = model.final_norm(x_BTD).flatten(0, 1)
    sums = cross_entropy_naive(hidden_ND, model.head.weight, model.head.bias, batch.targets.flatten())
    loss = sums.loss / sums.targets
    return loss + router_weight * router_loss(routers, "balanced") if routers else loss


def _attention(attention: Attention, x_BTD: Tensor) -> Tensor:
    length, device = x_BTD.shape[1], x_BTD.device
    q_BHTC, k_BKTC, v_BKTC = (
        projection(x_BTD).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if attention.rope_theta is not None:
        tables = rotary_tables(torch.arange(length, device=device), attention.head_dim, attention.rope_theta)
        q_BHTC, k_BKTC = rotate_naive(q_BHTC, tables), rotate_naive(k_BKTC, tables)
    seen_TT = AttentionMask(length, length, device, True, None, None, attention.window, attention.global_tokens).rows()
    out_BHTC = attend_naive(q_BHTC, k_BKTC, v_BKTC, seen_TT)
    return attention.out_proj(out_BHTC.transpose(1, 2).flatten(2))


def _moe(moe: MoE, x_BTD: Tensor) -> tuple[Tensor, RouterStats]:
    x_ND = x_BTD.flatten(0, 1)
    probs_NE = moe.router(x_ND).softmax(dim=-1)
    selected_Nk, experts_Nk = probs_NE.topk(moe.experts_per_token, dim=-1)
    weights_Nk = selected_Nk / (selected_Nk.sum(dim=-1, keepdim=True) + 1e-9)
    weights = moe.fc1_weight, moe.fc1_bias, moe.fc2_weight, moe.fc2_bias
    y_ND = run_experts_naive(x_ND, experts_Nk, weights_Nk, Experts(*weights, moe.activation, moe.gated))
    return y_ND.view_as(x_BTD), router_stats(probs_NE, selected_Nk, experts_Nk)
