"""Decoding on a CPU without torch's cost per operation, for a few rows of a small model.

The arithmetic is one compiled call a step (:mod:`sqat.cpu.decode`); this file prepares its arguments. Weights and
values are read in place from the model and its cache; only keys are copied. The model itself, on its cache, is the
definition, and runs where :func:`fits` says no.

Shape letters are those of :mod:`sqat.cpu.decode`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.cpu.threads import available, openmp
from sqat.model import Decoder, KVCache
from sqat.model.attention import Attention
from sqat.model.cache import LayerCache, RollingLayer
from sqat.model.decoder import Block
from sqat.model.feedforward import FeedForward
from sqat.model.moe import MoE
from sqat.model.norm import RMSNorm
from sqat.model.rope import rotary_tables

# Multiply-adds of a layer's largest product up to which a step runs in one thread: about 30 µs of one core, where
# waking another thread costs about as much as it saves, and far more on a busy machine.
ONE_THREAD_PRODUCT = 2**20
FEW_ROWS = 8  # with more rows and larger products, a matrix library is faster

MODULES = {Decoder, Block, Attention, FeedForward, MoE, RMSNorm}
MODULES |= {nn.Embedding, nn.Linear, nn.ModuleList, nn.Identity}


def fits(model: Decoder, cache: KVCache) -> bool:
    """Whether :class:`LeanStep` supports this model and cache, and is faster than the model itself.

    It reads weights directly, so no module may compute anything else (adapters, quantised layers, parametrisations),
    and all weights must be plain float32 tensors. Norms and activations are those that most models have.
    """
    rows, config, tensors = len(cache.layers[0].keys), model.config, (*model.parameters(), cache.layers[0].keys)
    return (
        config.gated
        and config.activation in ("silu", "swish")
        and all(type(module) in MODULES for module in model.modules())
        and all(type(x.data) is Tensor and x.dtype == torch.float32 for x in tensors)
        and (rows <= FEW_ROWS or _largest_product(config, rows) <= ONE_THREAD_PRODUCT)
        and not isinstance(cache.layers[0], RollingLayer)
        and not torch.is_autocast_enabled("cpu")
        and available()
    )


class LeanStep:
    """Reads one more token of every row, and gives the logits of the next.

    It is valid as long as the weights do not change. It continues from `cache`, whose `length` it does not update.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        from sqat.cpu.decode import CONFIG_SIZES, LAYER, STEP, decoding_step

        config = model.config
        rows, kv_heads, self.capacity, head_dim = cache.layers[0].keys.shape
        self.length = cache.length
        alone = _largest_product(config, rows) <= ONE_THREAD_PRODUCT
        self.threads = 1 if alone else torch.get_num_threads()
        self.embedding_VD = model.embedding.weight.detach().numpy()
        self.x_BD = np.empty((rows, config.hidden_size), np.float32)
        self.logits_BV = torch.empty(rows, config.vocab_size)

        self._kept: list[Tensor] = []  # keeps the memory behind the addresses below
        layers, self._step = np.zeros(len(model.layers), LAYER), np.zeros((), STEP)
        for record, block, layer_cache in zip(layers, model.layers, cache.layers, strict=True):
            assert isinstance(block, Block)
            self._write_layer(record, block, layer_cache)
        rope = rotary_tables(torch.arange(self.capacity), head_dim, config.rope_theta)
        per_row = config.experts_per_token if config.is_moe else 1
        self._write(
            self._step,
            **{name: getattr(config, name) for name in CONFIG_SIZES},
            rows=rows,
            capacity=self.capacity,
            experts_per_token=per_row,
            num_experts=config.num_experts if config.is_moe else 1,
            layers=torch.from_numpy(layers.view(np.int64)),
            first_B=torch.zeros(rows, dtype=torch.int64) if cache.padding_B is None else cache.padding_B,
            cos_SC=rope.cos,
            sin_SC=rope.sin,
            norm_eps=torch.finfo(torch.float32).eps if config.norm_eps is None else config.norm_eps,
            final_norm_D=getattr(model.final_norm, "weight", 0),
            x_BD=torch.from_numpy(self.x_BD),
            logits_BV=self.logits_BV,
            projected_BP=torch.empty(rows, (config.num_query_heads + 2 * kv_heads) * head_dim),
            attended_BI=torch.empty(rows, config.num_score_heads * head_dim),
            hidden_BkI=torch.empty(rows * per_row, 2 * config.intermediate_size),
        )
        self._write_matrix(self._step["head"], model.head.weight, model.head.bias)
        library = openmp()
        assert library is not None
        address = decoding_step().address
        self._run = functools.partial(library.GOMP_parallel, address, self._step.ctypes.data, self.threads, 0)

    def __call__(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) after one more token in every row; the next call overwrites them. A full cache is an error."""
        if self.length >= self.capacity:
            raise ValueError(f"key/value cache holds {self.capacity} positions, but {self.length + 1} are needed")
        self.embedding_VD.take(tokens_B.numpy(), 0, self.x_BD, "clip")
        self._step["position"] = self.length
        self._run()
        self.length += 1
        return self.logits_BV

    def _write(self, record: Any, **values: Tensor | int | float) -> None:
        """Set fields of a record; tensors become addresses of contiguous memory, and are kept alive."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                self._kept.append(value.detach().contiguous())
                value = self._kept[-1].data_ptr()
            record[name] = value

    def _write_layer(self, record: Any, block: Block, cache: LayerCache) -> None:
        feedforward: Any = block.feedforward
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear = getattr(block.attention, name)
            self._write_matrix(record[name], linear.weight, linear.bias)
        if isinstance(feedforward, MoE):
            router = feedforward.router.weight
            self._write_matrix(record["fc1"], feedforward.fc1_weight, feedforward.fc1_bias)
            self._write_matrix(record["fc2"], feedforward.fc2_weight, feedforward.fc2_bias)
        else:
            router = torch.zeros(1, block.attention.hidden_size)
            self._write_matrix(record["fc1"], feedforward.fc1.weight, feedforward.fc1.bias)
            self._write_matrix(record["fc2"], feedforward.fc2.weight, feedforward.fc2.bias)
        norms = {f"{name}_D": getattr(getattr(block, name), "weight", 0) for name in ("norm1", "norm2")}
        keys_BKCS = cache.keys.transpose(2, 3)
        self._write(record, **norms, keys_BKCS=keys_BKCS, values_BKSC=cache.values, router_ED=router)

    def _write_matrix(self, record: Any, weight: Tensor, bias: Tensor | None) -> None:
        self._write(record, weight=weight, bias=torch.zeros(weight.shape[:-1]) if bias is None else bias)


def _largest_product(config: ModelConfig, rows: int) -> float:
    """Multiply-adds of a layer's largest matrix product; an expert's, if rows spread evenly."""
    share = max(rows * config.experts_per_token / config.num_experts, 1) if config.is_moe else rows
    projected = (config.num_score_heads + 2 * config.num_kv_heads) * config.head_dim
    return config.hidden_size * max(share * 2 * config.intermediate_size, rows * projected)
