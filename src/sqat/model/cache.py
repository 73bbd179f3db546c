"""Keys and values of the tokens read so far, in memory taken once."""

from __future__ import annotations

import torch
from torch import Tensor

from sqat.config import ModelConfig


class LayerCache:
    """One layer's keys and values, (B, K, capacity, C); the first `length` positions are filled."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device | str, dtype: torch.dtype) -> None:
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; returns everything so far, as views (B, K, length, C).

        Raises:
            ValueError: the cache is full.
        """
        start, stop = self.length, self.length + k_BKTC.shape[2]
        if stop > self.keys.shape[2]:
            raise ValueError(f"key/value cache holds {self.keys.shape[2]} positions, but {stop} are needed")
        self.keys[:, :, start:stop] = k_BKTC
        self.values[:, :, start:stop] = v_BKTC
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]


class KVCache:
    """The whole model's cache, passed to :class:`sqat.model.Decoder` and filled by it.

    Args:
        config: the model's.
        batch_size: rows.
        capacity: positions there is room for, prompt and answer together.
        padding_B: how many positions at the start of each row are left padding, (B,); `None` where there is none.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        *,
        padding_B: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (batch_size, config.num_kv_heads, capacity, config.head_dim)
        self.layers = [LayerCache(shape, device, dtype) for _ in range(config.num_layers)]
        self.padding_B = padding_B

    @property
    def length(self) -> int:
        """Positions filled."""
        return self.layers[0].length

    def positions(self, num_new: int) -> Tensor:
        """Positions of the next `num_new` tokens: (T,), or (B, T) counted from each row's first real token."""
        device = self.layers[0].keys.device
        positions = torch.arange(self.length, self.length + num_new, device=device)
        if self.padding_B is None:
            return positions
        return (positions - self.padding_B.unsqueeze(1)).clamp(min=0)
