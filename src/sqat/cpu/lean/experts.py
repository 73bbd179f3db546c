"""Mixture of experts in a lean step.

Shape letters: B rows, D width, E experts, k experts per token, F expert hidden, I = F (or 2F, gated), R = B·k
selections, those of one expert together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sqat.cpu.lean.feedforward import Activation
from sqat.cpu.lean.linear import Array, LeanLinear, array, optional_array
from sqat.cpu.lean.norm import LeanNorm
from sqat.model.moe import MoE


class LeanMoE:
    """`feedforward(norm2(x))`: an expert at a time, on the rows that chose it.

    These lie in columns here: numpy's library is two to four times faster at (I, D) times (D, a few) than at its
    mirror image.
    """

    def __init__(self, moe: MoE, norm: nn.Module, rows: int) -> None:
        num_experts, inner, width = moe.fc1_weight.shape
        self.k = moe.experts_per_token
        self.norm = LeanNorm(norm, rows, width)
        self.router = LeanLinear(array(moe.router.weight), None, rows)
        self.fc1_EID, self.fc2_EDF = list(array(moe.fc1_weight)), list(array(moe.fc2_weight))
        self.fc1_bias_EI, self.fc2_bias_ED = optional_array(moe.fc1_bias), optional_array(moe.fc2_bias)
        num_selected = rows * self.k
        self.row_starts_B1 = np.arange(0, rows * num_experts, num_experts)[:, None]
        self.places_R = np.arange(num_selected)
        self.chosen_ER = np.empty((num_experts, num_selected), np.float32)
        self.x_DB = np.empty((width, rows), np.float32)
        self.x_DR, self.y_DR, self.y_sorted_DR = np.empty((3, width, num_selected), np.float32)
        before_IR, self.fc1_bias_IR = np.empty((2, inner, num_selected), np.float32)
        self.activate = Activation(before_IR, moe.fc2_weight.shape[2], moe.activation, moe.gated, axis=0)
        self.update_DB = np.empty((width, rows), np.float32)

    def __call__(self, x_BD: Array) -> Array:
        """What to add to the residual stream, (B, D); overwritten by the next call."""
        y_BD = self.norm(x_BD)
        experts_Bk, weights_Bk = self._choose(self.router(y_BD))
        experts = experts_Bk.ravel()
        order_R = experts.argsort(kind="stable")
        columns_Bk = np.empty(experts_Bk.shape, np.int64)
        columns_Bk.ravel()[order_R] = self.places_R
        ends = np.bincount(experts, minlength=len(self.fc1_EID)).cumsum().tolist()
        spans = [(e, slice(a, b)) for e, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if a < b]
        self.chosen_ER.fill(0)
        self.chosen_ER[experts[order_R], self.places_R] = 1

        np.copyto(self.x_DB, y_BD.T)
        self.x_DB.take(order_R // self.k, 1, self.x_DR, "clip")
        hidden = self.activate.before
        for e, some in spans:
            np.matmul(self.fc1_EID[e], self.x_DR[:, some], hidden[:, some])
        if self.fc1_bias_EI is not None:
            np.add(hidden, np.dot(self.fc1_bias_EI.T, self.chosen_ER, self.fc1_bias_IR), hidden)
        activated_FR = self.activate()
        for e, some in spans:
            np.matmul(self.fc2_EDF[e], activated_FR[:, some], self.y_DR[:, some])
        if self.fc2_bias_ED is not None:
            np.add(self.y_DR, np.dot(self.fc2_bias_ED.T, self.chosen_ER, self.x_DR), self.y_DR)

        np.multiply(self.y_DR, weights_Bk.ravel()[order_R], self.y_DR)
        self.y_DR.take(columns_Bk.T.ravel(), 1, self.y_sorted_DR, "clip")
        np.add.reduce(self.y_sorted_DR.reshape(len(self.x_DB), self.k, -1), 1, out=self.update_DB)
        return self.update_DB.T

    def _choose(self, logits_BE: Array) -> tuple[NDArray[np.int64], Array]:
        """Each row's experts and their weights, (B, k): the softmax over the k largest router outputs, which is what is
        left of the softmax over all of them once its k largest values are made to sum to one.
        """
        experts_Bk = logits_BE.argpartition(-self.k, axis=1)[:, -self.k :]
        weights_Bk = logits_BE.take(experts_Bk + self.row_starts_B1)
        weights_Bk -= weights_Bk.max(axis=1, keepdims=True)
        np.exp(weights_Bk, weights_Bk)
        weights_Bk /= weights_Bk.sum(axis=1, keepdims=True)
        return experts_Bk, weights_Bk
