"""Keys and values of the tokens read so far, in memory taken once; with a window, of those that are still in reach.

Shape letters: B batch, T tokens, S keys, K key/value heads, C head_dim, G global tokens, W window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqat.config import ModelConfig
from sqat.model.mask import AttentionMask


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


class RollingLayer(LayerCache):
    """One layer's keys and values under a window: (B, K, G + W, C), however long the text becomes.

    A row's own position q (counted from its first real token) is kept in slot q while q < G + W, and from then on in
    slot G + (q - G) mod W: the first G stay, the others are written over when they are out of reach.

    Args:
        shape: (B, K, C).
        window, global_tokens: W and G.
        padding_B: left padding of each row, if any.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        window: int,
        global_tokens: int = 0,
        padding_B: Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        rows, kv_heads, head_dim = shape
        super().__init__((rows, kv_heads, global_tokens + window, head_dim), device, dtype)
        self.keys.zero_()  # slots not yet filled are read, with weight zero
        self.values.zero_()
        self.window = window
        self.global_tokens = global_tokens
        self.padding_B = padding_B

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; returns what these may see, in the order that :meth:`mask` is about: global tokens
        that were written before the rest, the positions before these that are in the first one's reach, and these.
        """
        num_new = k_BKTC.shape[2]
        k_BKTC, v_BKTC = k_BKTC.to(self.keys.dtype), v_BKTC.to(self.values.dtype)
        found = self._read(self.keys, k_BKTC), self._read(self.values, v_BKTC)
        for memory, new in ((self.keys, k_BKTC), (self.values, v_BKTC)):
            self._write(memory, new)
        self.length += num_new
        return found

    def mask(self, num_new: int) -> AttentionMask | None:
        """What the next `num_new` tokens see of the keys that :meth:`append` will give; `None` for all before them."""
        history, with_global = self._history, self._with_global
        num_global = self.global_tokens if with_global else 0
        num_keys = num_global + history + num_new
        device, reach = self.keys.device, self.window if num_keys > self.window else None
        before = self.length - history  # positions that are not in reach
        if before == 0:
            if reach is None and self.padding_B is None:
                return None
            kept = self.global_tokens if reach is not None else 0
            return AttentionMask(
                num_new, num_keys, device, first_key_B=self.padding_B, window=reach, global_tokens=kept
            )
        own_BS = None
        if self.padding_B is not None or before < num_global:
            own_BT = self._own(before, history + num_new)
            slots_G = torch.arange(num_global, device=device)
            own_BG = torch.where(slots_G < own_BT[:, :1], slots_G, -1)  # or they are among the others
            own_BS = torch.cat((own_BG, own_BT), dim=1)
        if num_new == 1 and own_BS is None:
            return None  # all that is given is in reach
        return AttentionMask(num_new, num_keys, device, window=self.window, global_tokens=num_global, own_BS=own_BS)

    @property
    def _history(self) -> int:
        return min(self.window - 1, self.length)

    @property
    def _with_global(self) -> bool:
        return self.global_tokens > 0 and self.length > self._history

    def _own(self, first: int, count: int) -> Tensor:
        """Rows' own numbers of so many positions, (B or 1, count); negative at padding."""
        positions = torch.arange(first, first + count, device=self.keys.device).unsqueeze(0)
        return positions if self.padding_B is None else positions - self.padding_B.unsqueeze(1)

    def slots(self, own_BT: Tensor) -> Tensor:
        """Where rows keep their own positions; padding gets a slot that a real token will write over."""
        rolled = self.global_tokens + (own_BT - self.global_tokens) % self.window
        return torch.where((own_BT >= 0) & (own_BT < self.global_tokens), own_BT, rolled)

    def filled(self, own_BT: Tensor) -> Tensor:
        """Which slots hold a real token once a row's own last position is `own_BT` (B or 1, 1), (B or 1, G + W)."""
        slots = torch.arange(self.keys.shape[2], device=own_BT.device)
        held = own_BT - (own_BT - slots) % self.window
        return torch.where(slots < self.global_tokens, slots <= own_BT, held >= self.global_tokens)

    def _index(self, slots_BT: Tensor) -> Tensor:
        rows, kv_heads, _, head_dim = self.keys.shape
        return slots_BT[:, None, :, None].expand(rows, kv_heads, -1, head_dim)

    def _read(self, memory: Tensor, new_BKTC: Tensor) -> Tensor:
        parts = [memory[:, :, : self.global_tokens]] if self._with_global else []
        if history := self._history:
            slots = self.slots(self._own(self.length - history, history))
            parts.append(memory.gather(2, self._index(slots)))
        return torch.cat((*parts, new_BKTC), dim=2) if parts else new_BKTC

    def _write(self, memory: Tensor, new_BKTC: Tensor) -> None:
        num_new = new_BKTC.shape[2]
        last = min(num_new, self.window)
        if self.global_tokens and last < num_new:
            places = torch.arange(self.global_tokens, device=memory.device) - self._own(self.length, 1)
            index = self._index(places.clamp(0, num_new - 1))
            new = ((places >= 0) & (places < num_new))[:, None, :, None]
            first = memory[:, :, : self.global_tokens]
            first.copy_(torch.where(new, new_BKTC.gather(2, index), first))
        slots = self.slots(self._own(self.length + num_new - last, last))
        memory.scatter_(2, self._index(slots), new_BKTC[:, :, num_new - last :])


def window_mask(
    num_new: int, cache: LayerCache | None, window: int, global_tokens: int, device: torch.device
) -> AttentionMask | None:
    """What `num_new` tokens after a cache see, where rows are one document each; `None` for all before them."""
    if isinstance(cache, RollingLayer):
        return cache.mask(num_new)
    num_keys = num_new + (0 if cache is None else cache.length)
    if num_keys <= window:
        return None
    return AttentionMask(num_new, num_keys, device, window=window, global_tokens=global_tokens).keep()


class KVCache:
    """The whole model's cache, passed to :class:`sqat.model.Decoder` and filled by it. Where the model has a window
    shorter than `capacity`, it rolls: it holds the window and the global tokens, and is never full.

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
        rows, heads, width = batch_size, config.num_kv_heads, config.head_dim
        window, kept = config.window, config.global_tokens
        if window is None or capacity <= window:
            layers = [LayerCache((rows, heads, capacity, width), device, dtype) for _ in range(config.num_layers)]
        else:
            layers = [
                RollingLayer((rows, heads, width), window, kept, padding_B, device=device, dtype=dtype)
                for _ in range(config.num_layers)
            ]
        self.layers: list[LayerCache] = layers
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

    def mask(self, num_new: int) -> AttentionMask | None:
        """What the next `num_new` tokens see; `None` for all before them."""
        first = self.layers[0]
        if isinstance(first, RollingLayer):
            return first.mask(num_new)
        if self.padding_B is None:
            return None
        return AttentionMask(num_new, self.length + num_new, first.keys.device, first_key_B=self.padding_B)
