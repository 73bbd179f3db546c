"""Key/value caches, allocated once: of all tokens so far, or, with a window, of those still in reach.

Shape letters: B batch, T tokens, S keys, K key/value heads, C head_dim, W window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqat.config import ModelConfig
from sqat.model.mask import AttentionMask


class LayerCache:
    """One layer's keys and values, (B, K, capacity, C), of which the first `length` positions are filled, and the left
    padding of each row, if any.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        padding_B: Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.padding_B = padding_B
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

    def mask(self, num_new: int) -> AttentionMask | None:
        """What the next `num_new` tokens see of the keys that :meth:`append` will give; `None` for all before them."""
        if self.padding_B is None:
            return None
        return AttentionMask(num_new, self.length + num_new, self.keys.device, first_key_B=self.padding_B)


class RollingLayer(LayerCache):
    """One layer's keys and values under a window, in memory that does not grow: those of the last W positions, and of
    the first, where global tokens lie (with left padding, in the most padded row too). The capacity that `shape` names
    does not count.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        window: int,
        global_tokens: int = 0,
        padding_B: Tensor | None = None,
        **place: Any,
    ) -> None:
        super().__init__((*shape[:2], 0, shape[3]), padding_B, **place)
        most_padding = 0 if padding_B is None else int(padding_B.max())
        self.num_kept = global_tokens + most_padding if global_tokens else 0
        self.positions_S = torch.arange(0, device=self.keys.device)  # of the keys that are held
        self.window = window
        self.global_tokens = global_tokens

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; returns what these may see, (B, K, S + T, C): what was held before, and these.

        :meth:`mask`, asked before, says which of them they see.
        """
        positions_S = self._positions(k_BKTC.shape[2])
        self.length += k_BKTC.shape[2]
        keys = torch.cat((self.keys, k_BKTC.to(self.keys.dtype)), dim=2)
        values = torch.cat((self.values, v_BKTC.to(self.values.dtype)), dim=2)
        first = min(self.num_kept, len(positions_S))
        last = max(first, len(positions_S) - self.window)
        self.keys, self.values = (torch.cat((x[:, :, :first], x[:, :, last:]), dim=2) for x in (keys, values))
        self.positions_S = torch.cat((positions_S[:first], positions_S[last:]))
        return keys, values

    def mask(self, num_new: int) -> AttentionMask | None:
        """As of a layer that does not roll."""
        if not self.length and num_new <= self.window:
            return super().mask(num_new)
        positions_S = self._positions(num_new)
        reach = self.window, self.global_tokens, positions_S if self.length else None
        return AttentionMask(num_new, len(positions_S), self.keys.device, True, None, self.padding_B, *reach)

    def _positions(self, num_new: int) -> Tensor:
        """Those of the keys that are held, and of the next."""
        new = torch.arange(self.length, self.length + num_new, device=self.keys.device)
        return torch.cat((self.positions_S, new))


def layer_cache(
    shape: tuple[int, int, int, int], window: int | None, global_tokens: int, padding_B: Tensor | None, **place: Any
) -> LayerCache:
    """For as many positions as `shape` says, or with a shorter window one that rolls, and is never full."""
    if window is None or shape[2] <= window:
        return LayerCache(shape, padding_B, **place)
    return RollingLayer(shape, window, global_tokens, padding_B, **place)


def window_mask(
    num_new: int, cache: LayerCache | None, window: int, global_tokens: int, device: torch.device
) -> AttentionMask | None:
    """What `num_new` tokens after a cache see, where rows are one document each; `None` for all before them."""
    if isinstance(cache, RollingLayer):
        return cache.mask(num_new)
    num_keys = num_new + (0 if cache is None else cache.length)
    if type(num_keys) is int and num_keys <= window:  # a symbol stands for any length
        return None
    return AttentionMask(num_new, num_keys, device, window=window, global_tokens=global_tokens)


class KVCache:
    """The key/value cache of a whole model: passed to :class:`sqat.model.Decoder`, which fills it. If the model has a
    window shorter than `capacity`, the cache rolls: it holds only the window and the global tokens, and is never full.

    Args:
        config: the model's.
        batch_size: rows, B.
        capacity: positions, for prompt and answer together.
        padding_B: how many positions at the start of each row are left padding, (B,); None if there are none.
        device, dtype: of the keys and values.
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
        shape = batch_size, config.num_kv_heads, capacity, config.head_dim
        limits = config.window, config.global_tokens, padding_B
        self.layers = [layer_cache(shape, *limits, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.padding_B = padding_B

    @property
    def length(self) -> int:
        """The number of positions filled."""
        return self.layers[0].length

    def positions(self, num_new: int) -> Tensor:
        """The positions of the next `num_new` tokens: (T,), or with left padding (B, T), counted from each row's first
        real token.
        """
        device = self.layers[0].keys.device
        positions = torch.arange(self.length, self.length + num_new, device=device)
        if self.padding_B is None:
            return positions
        return (positions - self.padding_B.unsqueeze(1)).clamp(min=0)

    def mask(self, num_new: int) -> AttentionMask | None:
        """What the next `num_new` tokens attend to; None for all earlier ones."""
        return self.layers[0].mask(num_new)
