"""One decoding step whose shapes never change: what CUDA graphs and compilers need.

Shape letters: B rows (R where 1 stands for all), S positions of the cache (slots, of one that rolls), T tokens (1),
D width, K kv heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sqat.model import AttentionMask, Decoder, KVCache
from sqat.model.cache import LayerCache, RollingLayer
from sqat.model.rope import rotary_tables

WARM_UP_STEPS = 3  # before a capture: libraries choose kernels and take memory on their first calls


class StaticStep:
    """Reads one more token of every row, and gives the logits of the next; the place is a tensor on the device.

    Every step attends over the whole cache, with what is not filled yet masked out, so one recorded sequence of kernels
    serves for all steps, and launching them one by one, most of the time of a small model, is done once.

    Args:
        model: in evaluation mode; its weights are read where they are.
        cache: filled with the prompts; the steps go on filling it, and it may be used elsewhere in between.
        graph: record a CUDA graph; by default where the model is on a GPU.
        compile: compile the step first (takes a minute).

    Raises:
        ValueError: a graph is asked for where there is no GPU.
    """

    def __init__(self, model: Decoder, cache: KVCache, *, graph: bool | None = None, compile: bool = False) -> None:
        device = model.embedding.weight.device
        if graph and device.type != "cuda":
            raise ValueError(f"graph is true, but the model is on {device}: CUDA graphs are for GPUs")
        self.model = model
        self.cache = cache
        self.capacity = cache.layers[0].keys.shape[2]
        self.rolling = cache.layers[0] if isinstance(cache.layers[0], RollingLayer) else None
        self.record = device.type == "cuda" if graph is None else graph
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
        self._step: Callable[[Tensor], Tensor] = self._logits
        if compile:
            self._step = torch.compile(self._logits, fullgraph=True, dynamic=False)

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
        if self.record:
            self.tokens_B.copy_(tokens_B)
            if self.graph is None:
                self.graph = self._record()
            self.graph.replay()
        else:
            self.logits_BV = self._step(tokens_B)
        for layer in self.cache.layers:
            layer.length = length + 1
        return self.logits_BV

    def _record(self) -> torch.cuda.CUDAGraph:
        """A graph that reads `tokens_B` and `place_1` and writes `logits_BV`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):  # they all write to the place that the first real step writes to again
                self._step(self.tokens_B)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits_BV = self._step(self.tokens_B)
        return graph

    def _logits(self, tokens_B: Tensor) -> Tensor:
        model, padding_B = self.model, self.cache.padding_B
        position = self.place_1 if padding_B is None else (self.place_1 - padding_B).clamp(min=0).unsqueeze(1)
        rope = rotary_tables(position, model.config.head_dim, model.config.rope_theta)
        if self.rolling is not None:
            self.slots_R1.copy_(self.rolling.slots(self._own_R1()))
        seen = self._seen()
        mask = AttentionMask(1, self.capacity, seen.device, whole=seen)
        x_B1D = model.embedding(tokens_B.unsqueeze(1))
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


class _FullLayer(LayerCache):
    """A layer of a cache that writes where a tensor says, one place for all rows or one for each, and always gives all
    positions.
    """

    def __init__(self, layer: LayerCache, slots_R1: Tensor) -> None:
        self.keys, self.values = layer.keys, layer.values
        self.length = layer.length
        self.slots_R1 = slots_R1
        for memory in (self.keys, self.values):  # zero times what happened to be there may not be a number
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
