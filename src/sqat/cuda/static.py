"""Decoding on a GPU as a recorded CUDA graph: a step whose shapes never change.

Launching a small model's kernels one by one takes most of a step's time; a graph launches them all at once.

Shape letters: B rows (R where 1 stands for all), S positions of the cache (slots, of one that rolls), T tokens (1),
K kv heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqat.cuda.grouped_experts import FEW_TOKENS
from sqat.model import AttentionMask, Decoder, KVCache
from sqat.model.cache import LayerCache, RollingLayer
from sqat.model.rope import rotary_tables

WARM_UP_STEPS = 3  # before a capture: libraries choose kernels and allocate on their first calls


def fits(model: Decoder, cache: KVCache) -> bool:
    """Whether a step can be recorded: with more tokens, experts wait for the device to know how many rows they have."""
    return len(cache.layers[0].keys) <= FEW_TOKENS or not model.config.is_moe


class StaticStep:
    """Reads one more token of every row, and gives the logits of the next; the position is a tensor on the device.

    Every step attends over the whole cache, with what is not filled yet masked out, so that one graph serves for all
    steps. Without a GPU the same step runs without a graph.

    Args:
        model: in evaluation mode; its weights are read where they are.
        cache: filled with the prompts; the steps go on filling it, and it may be used elsewhere in between.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        device = model.embedding.weight.device
        self.model = model
        self.cache = cache
        self.capacity = cache.layers[0].keys.shape[2]
        self.rolling = cache.layers[0] if isinstance(cache.layers[0], RollingLayer) else None
        self.record = device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        rows = len(cache.layers[0].keys)
        with torch.inference_mode():
            self.tokens_B = torch.zeros(rows, dtype=torch.long, device=device)
            self.place_1 = torch.zeros(1, dtype=torch.long, device=device)
            self.logits_BV = torch.empty(0, device=device)
            self.slots_R1 = torch.zeros(1 if cache.padding_B is None else rows, 1, dtype=torch.long, device=device)
            if self.rolling is None:
                self.slots_R1 = self.place_1.unsqueeze(0)
            self._layers = [_FullLayer(layer, self.slots_R1) for layer in cache.layers]

    @torch.inference_mode()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) after one more token in every row. With a graph, the next call writes over them.

        Raises:
            ValueError: the cache is full, and does not roll.
        """
        length = self.cache.length
        if length >= self.capacity and self.rolling is None:
            raise ValueError(f"key/value cache holds {self.capacity} positions, but {length + 1} are needed")
        self.place_1.fill_(length)
        self.tokens_B.copy_(tokens_B)
        if self.record:
            self.graph = self.graph or self._record()
            self.graph.replay()
        else:
            self.logits_BV = self._logits()
        for layer in self.cache.layers:
            layer.length = length + 1
        return self.logits_BV

    def _record(self) -> torch.cuda.CUDAGraph:
        """A graph that reads `tokens_B` and `place_1` and writes `logits_BV`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):  # they all write to the position that the first real step writes again
                self._logits()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits_BV = self._logits()
        return graph

    def _logits(self) -> Tensor:
        model, padding_B = self.model, self.cache.padding_B
        position = self.place_1 if padding_B is None else (self.place_1 - padding_B).clamp(min=0).unsqueeze(1)
        rope = rotary_tables(position, model.config.head_dim, model.config.rope_theta)
        if self.rolling is not None:
            self.slots_R1.copy_(self.rolling.slots(self._own_R1()))
        seen = self._seen()
        mask = AttentionMask(1, self.capacity, seen.device, whole=seen)
        x_B1D = model.embedding(self.tokens_B.unsqueeze(1))
        for block, layer in zip(model.layers, self._layers, strict=True):
            x_B1D, _ = block(x_B1D, rope, mask, layer)
        return model.head(model.final_norm(x_B1D).squeeze(1))

    def _seen(self) -> Tensor:
        """Which positions the new token sees, (R, 1, 1, S): those from the row's first up to itself, or what a cache
        that rolls holds.
        """
        if self.rolling is not None:
            return self.rolling.filled(self._own_R1())[:, None, None]
        places_S = torch.arange(self.capacity, device=self.place_1.device)
        seen = (places_S <= self.place_1).view(1, 1, 1, -1)
        if self.cache.padding_B is not None:
            seen = seen & (places_S >= self.cache.padding_B.view(-1, 1, 1, 1))
        return seen

    def _own_R1(self) -> Tensor:
        """The position of the new token in its row, padding not counted."""
        padding_B = self.cache.padding_B
        return self.place_1.unsqueeze(0) if padding_B is None else (self.place_1 - padding_B).unsqueeze(1)


make_step = StaticStep


class _FullLayer(LayerCache):
    """A layer of a cache that writes where a tensor says, one place for all rows or one for each, and always gives all
    positions.
    """

    def __init__(self, layer: LayerCache, slots_R1: Tensor) -> None:
        self.keys, self.values = layer.keys, layer.values
        self.length = layer.length
        self.slots_R1 = slots_R1
        for memory in (self.keys, self.values):  # weight zero times NaN would be NaN
            memory[:, :, layer.length :] = 0

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position; returns the whole memory, (B, K, S, C)."""
        for memory, new in ((self.keys, k_BKTC), (self.values, v_BKTC)):
            new_BKTC = new.to(memory.dtype)
            if len(self.slots_R1) == 1:
                memory.index_copy_(2, self.slots_R1[0], new_BKTC)
            else:
                memory.scatter_(2, self.slots_R1[:, None, :, None].expand_as(new_BKTC), new_BKTC)
        return self.keys, self.values
