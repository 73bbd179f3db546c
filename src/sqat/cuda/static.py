"""Decoding on a GPU as a recorded CUDA graph: a step whose shapes never change.

Launching a small model's kernels one by one takes most of a step's time; a graph launches them all at once.

Shape letters: B rows, S positions of the cache, T tokens (1), K kv heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sqat.cuda.experts import FEW_TOKENS
from sqat.model import AttentionMask, Decoder, KVCache
from sqat.model.cache import LayerCache, RollingLayer
from sqat.model.rope import rotary_tables

WARM_UP_STEPS = 3  # before a capture: libraries choose kernels and allocate on their first calls


def fits(model: Decoder, cache: KVCache) -> bool:
    """Whether a step can be recorded: a cache that rolls moves its keys, and experts of many tokens wait for the device
    to know how many rows they have.
    """
    layer = cache.layers[0]
    return not isinstance(layer, RollingLayer) and (len(layer.keys) <= FEW_TOKENS or not model.config.is_moe)


class StaticStep:
    """Reads one more token of every row, and gives the logits of the next; the position is a tensor on the device.

    Every step attends over the whole cache, with what is not filled yet masked out, so that one graph serves for all
    steps. Without a GPU the same step runs without a graph. The cache may be used elsewhere in between.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        device = model.embedding.weight.device
        self.model = model
        self.cache = cache
        self.capacity = cache.layers[0].keys.shape[2]
        self.record = device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        rows = len(cache.layers[0].keys)
        with torch.inference_mode():
            self.tokens_B = torch.zeros(rows, dtype=torch.long, device=device)
            self.place_1 = torch.zeros(1, dtype=torch.long, device=device)
            self.logits_BV = torch.empty(0, device=device)
            self._layers = [_FullLayer(layer, self.place_1) for layer in cache.layers]

    @torch.inference_mode()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) after one more token in every row. With a graph, the next call overwrites them."""
        length = self.cache.length
        if length >= self.capacity:
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
        first_B1 = torch.zeros_like(self.place_1).unsqueeze(0) if padding_B is None else padding_B.unsqueeze(1)
        places_S = torch.arange(self.capacity, device=first_B1.device)
        seen_BS = (places_S <= self.place_1) & (places_S >= first_B1)
        mask = AttentionMask(1, self.capacity, seen_BS.device, whole=seen_BS[:, None, None])
        x_B1D = model.embedding(self.tokens_B.unsqueeze(1))
        for block, layer in zip(model.layers, self._layers, strict=True):
            x_B1D, _ = block(x_B1D, rope, mask, layer)
        return model.head(model.final_norm(x_B1D).squeeze(1))


class _FullLayer(LayerCache):
    """A layer of a cache that writes where a tensor says and always gives all positions."""

    def __init__(self, layer: LayerCache, place_1: Tensor) -> None:
        self.keys, self.values = layer.keys, layer.values
        self.length = layer.length
        self.place_1 = place_1
        for memory in (self.keys, self.values):  # weight zero times NaN would be NaN
            memory[:, :, layer.length :] = 0

    def append(self, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store one position; returns the whole memory, (B, K, S, C)."""
        self.keys.index_copy_(2, self.place_1, k_BKTC.to(self.keys.dtype))
        self.values.index_copy_(2, self.place_1, v_BKTC.to(self.values.dtype))
        return self.keys, self.values
