"""Normalisation layers, chosen by name.

Shape letters: D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sqat.model.dispatch import operation


def make_norm(kind: str | None, hidden_size: int, eps: float | None) -> nn.Module:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450) over the last axis; for `None`, the identity.

    `eps` of `None` is torch's own default: machine epsilon of the input for RMSNorm, 1e-5 for LayerNorm.
    """
    if kind is None:
        return nn.Identity()
    if kind == "rmsnorm":
        return RMSNorm(hidden_size, eps=eps)
    return nn.LayerNorm(hidden_size, eps=1e-5 if eps is None else eps)


class RMSNorm(nn.RMSNorm):
    """`x / sqrt(mean(x²) + eps) · weight` (arXiv 1910.07467, eq. 4), (…, D) to (…, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        return rms_norm(x, self.weight, self.eps)


@operation
def rms_norm(x: Tensor, weight_D: Tensor, eps: float | None) -> Tensor:
    """RMSNorm over the last axis; `eps` of `None` is the machine epsilon of `x`'s type."""
    return F.rms_norm(x, weight_D.shape, weight_D, eps)
