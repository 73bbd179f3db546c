"""Mixture of experts in a lean step: one row, or many.

Shape letters: B rows, D width, E experts, k experts per token, F expert hidden, I = F (or 2F, gated), R = B·k
selections, those of one expert together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sqat.generate.lean.feedforward import Activation
from sqat.generate.lean.linear import Array, LeanLinear, array, optional_array
from sqat.generate.lean.norm import LeanNorm
from sqat.model.moe import MoE


class _MoE(ABC):
    """`feedforward(norm2(x))`, but for what the chosen experts do.

    The k weights are the softmax over the k largest router outputs: what is left of the softmax over all of them once
    its k largest values are made to sum to one.
    """

    def __init__(self, moe: MoE, norm: nn.Module, rows: int) -> None:
        self.k = moe.experts_per_token
        self.norm = LeanNorm(norm, rows, moe.router.in_features)
        self.router = LeanLinear(array(moe.router.weight), None, rows)
        self.fc1_EID, self.fc2_EDF = list(array(moe.fc1_weight)), list(array(moe.fc2_weight))
        self.fc1_bias_EI, self.fc2_bias_ED = optional_array(moe.fc1_bias), optional_array(moe.fc2_bias)

    def __call__(self, x_BD: Array) -> Array:
        """What to add to the residual stream, (B, D); overwritten by the next call."""
        y_BD = self.norm(x_BD)
        return self.experts(y_BD, self.router(y_BD))

    @abstractmethod
    def experts(self, x_BD: Array, logits_BE: Array) -> Array:
        """The weighted sum of each row's experts, chosen by the router's `logits_BE`."""


class OneRowMoE(_MoE):
    """For one row: each chosen expert's matrices times a vector."""

    def __init__(self, moe: MoE, norm: nn.Module) -> None:
        super().__init__(moe, norm, 1)
        _, inner, width = moe.fc1_weight.shape
        self.fc1_EDI, self.fc2_EFD = [w.T for w in self.fc1_EID], [w.T for w in self.fc2_EDF]
        before_kI = np.empty((self.k, inner), np.float32)
        self.activate = Activation(before_kI, moe.fc2_weight.shape[2], moe.activation, moe.gated)
        self.fc1_bias_kI = np.empty_like(before_kI)
        self.y_kD, self.fc2_bias_kD = np.empty((2, self.k, width), np.float32)
        self.weights_1k = np.empty((1, self.k), np.float32)
        self.update_1D = np.empty((1, width), np.float32)
        self.rows = [slice(i, i + 1) for i in range(self.k)]

    def experts(self, x_1D: Array, logits_1E: Array) -> Array:
        logits, hidden = logits_1E[0], self.activate.before
        experts_k = logits.argpartition(-self.k)[-self.k :]
        self._weigh(logits[experts_k].tolist())
        chosen = list(zip(self.rows, experts_k.tolist(), strict=True))
        for row, e in chosen:
            np.dot(x_1D, self.fc1_EDI[e], hidden[row])
        if self.fc1_bias_EI is not None:
            np.add(hidden, self.fc1_bias_EI.take(experts_k, 0, self.fc1_bias_kI, "clip"), hidden)
        activated_kF = self.activate()
        for row, e in chosen:
            np.dot(activated_kF[row], self.fc2_EFD[e], self.y_kD[row])
        if self.fc2_bias_ED is not None:
            np.add(self.y_kD, self.fc2_bias_ED.take(experts_k, 0, self.fc2_bias_kD, "clip"), self.y_kD)
        return np.dot(self.weights_1k, self.y_kD, self.update_1D)

    def _weigh(self, logits: list[float]) -> None:
        """Softmax into `weights_1k`; of numbers this few it is quicker without numpy."""
        largest = max(logits)
        exps = [math.exp(logit - largest) for logit in logits]
        total = sum(exps)
        self.weights_1k[0] = [value / total for value in exps]


class ManyRowsMoE(_MoE):
    """For more: an expert at a time, on the rows that chose it.

    These lie in columns here: numpy's library is two to four times faster at (I, D) times (D, a few) than at its
    mirror image.
    """

    def __init__(self, moe: MoE, norm: nn.Module, rows: int) -> None:
        super().__init__(moe, norm, rows)
        num_experts, inner, width = moe.fc1_weight.shape
        num_selected = rows * self.k
        self.row_starts_B1 = np.arange(0, rows * num_experts, num_experts)[:, None]
        self.places_R = np.arange(num_selected)
        self.chosen_ER = np.empty((num_experts, num_selected), np.float32)
        self.x_DB = np.empty((width, rows), np.float32)
        self.x_DR, self.y_DR, self.y_sorted_DR = np.empty((3, width, num_selected), np.float32)
        before_IR, self.fc1_bias_IR = np.empty((2, inner, num_selected), np.float32)
        self.activate = Activation(before_IR, moe.fc2_weight.shape[2], moe.activation, moe.gated, axis=0)
        self.update_DB = np.empty((width, rows), np.float32)

    def experts(self, x_BD: Array, logits_BE: Array) -> Array:
        experts_Bk, weights_Bk = self._choose(logits_BE)
        experts = experts_Bk.ravel()
        order_R = experts.argsort(kind="stable")
        columns_Bk = np.empty(experts_Bk.shape, np.int64)
        columns_Bk.ravel()[order_R] = self.places_R
        ends = np.bincount(experts, minlength=len(self.fc1_EID)).cumsum().tolist()
        spans = [(e, slice(a, b)) for e, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if a < b]
        self.chosen_ER.fill(0)
        self.chosen_ER[experts[order_R], self.places_R] = 1

        np.copyto(self.x_DB, x_BD.T)
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
        """Each row's experts and their weights, (B, k)."""
        experts_Bk = logits_BE.argpartition(-self.k, axis=1)[:, -self.k :]
        weights_Bk = logits_BE.take(experts_Bk + self.row_starts_B1)
        weights_Bk -= weights_Bk.max(axis=1, keepdims=True)
        np.exp(weights_Bk, weights_Bk)
        weights_Bk /= weights_Bk.sum(axis=1, keepdims=True)
        return experts_Bk, weights_Bk
