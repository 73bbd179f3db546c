"""Normalisation layers: torch's own, chosen by name."""

from __future__ import annotations

from torch import nn


def make_norm(kind: str | None, hidden_size: int, eps: float | None) -> nn.Module:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450) over the last axis; for `None`, the identity.

    `eps` of `None` is torch's own default: machine epsilon of the input for RMSNorm, 1e-5 for LayerNorm.
    """
    if kind is None:
        return nn.Identity()
    if kind == "rmsnorm":
        return nn.RMSNorm(hidden_size, eps=eps)
    return nn.LayerNorm(hidden_size, eps=1e-5 if eps is None else eps)
