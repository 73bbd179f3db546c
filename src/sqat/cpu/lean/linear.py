"""Matrix products of a lean step, and how its arrays share memory with the model's weights.

Shape letters: B rows, I inputs, O outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]

# Matrices of fewer entries are quick either way, and need no copies the ordinary way.
LARGE = 2**15


def array(weight: Tensor) -> Array:
    """The same memory as an array (a copy if it is not contiguous)."""
    return np.ascontiguousarray(weight.detach().numpy())


def optional_array(weight: Tensor | None) -> Array | None:
    return None if weight is None else array(weight)


class LeanLinear:
    """`x · weightᵀ + bias`, into memory of its own.

    A large matrix times a few rows is computed in columns, as (O, I) times (I, B): numpy's library is two to seven
    times faster at that than at its mirror image.
    """

    def __init__(self, weight_OI: Array, bias_O: Array | None, rows: int) -> None:
        self.weight_OI, self.weight_IO = weight_OI, weight_OI.T
        self.bias_O = bias_O
        self.out_BO = np.empty((rows, len(weight_OI)), np.float32)
        self.in_columns = rows > 1 and weight_OI.size >= LARGE
        if self.in_columns:
            self.x_IB = np.empty((weight_OI.shape[1], rows), np.float32)
            self.out_OB = np.empty((len(weight_OI), rows), np.float32)

    def __call__(self, x_BI: Array) -> Array:
        """(B, O); overwritten by the next call."""
        if self.in_columns:
            np.copyto(self.x_IB, x_BI.T)
            np.dot(self.weight_OI, self.x_IB, self.out_OB)
            np.copyto(self.out_BO, self.out_OB.T)
        else:
            np.dot(x_BI, self.weight_IO, self.out_BO)
        return self.out_BO if self.bias_O is None else np.add(self.out_BO, self.bias_O, self.out_BO)
