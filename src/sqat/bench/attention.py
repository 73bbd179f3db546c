"""`sqat bench attention`: what fewer query heads buy, at growing context, beside full attention.

Shape letters: B rows, T tokens, H heads of full attention, Hq query heads, K key/value heads, C head_dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sqat.bench.results import Result, Spread, Table
from sqat.bench.settings import Context
from sqat.bench.timing import Candidate, Sample, Stopwatch, alternate
from sqat.config import ModelConfig
from sqat.model.attend import attend, kernel_dtype
from sqat.model.attention import Attention
from sqat.train.device import use_bf16
from sqat.variants import VARIANTS, head_counts

HEADS, HEAD_DIM = 16, 16  # the card's mini family
LENGTHS = {"cpu": (256, 1024, 4096, 16384), "cuda": (256, 1024, 4096, 16384, 32768, 65536, 131072, 200000)}
TOKENS = {"cpu": 16384, "cuda": 131072}  # of a batch, or one row where that is longer
QUICK_LENGTHS, QUICK_TOKENS = (17, 31), 62
LEAST_SECONDS = {"cpu": 0.15, "cuda": 0.02}
MODULE_LENGTHS = {"cpu": (4096,), "cuda": (4096, 32768)}
FORWARD, BOTH = "forward", "forward+backward"
# Products of queries, keys, values and their gradients: two forward; five backward, where scores are computed again.
OPERATIONS = {FORWARD: 1.0, BOTH: 3.5}


def title(direction: str, length: int, *, module: bool = False) -> str:
    """The table's name, by which the targets find it."""
    return f"{'attention module' if module else 'attention'}, {direction}, {length:,} tokens"


def measure_attention(context: Context) -> Result:
    """Scores and weighted sum alone (`attend`) at every length; the whole module, projections included, at some."""
    settings = context.settings
    lengths = QUICK_LENGTHS if settings.quick else LENGTHS[settings.device]
    modules = QUICK_LENGTHS[:1] if settings.quick else MODULE_LENGTHS[settings.device]
    if settings.device == "cpu":
        _as_in_training()
    tables = [_table(context, direction, length, module=False) for length in lengths for direction in OPERATIONS]
    tables += [_table(context, BOTH, length, module=True) for length in modules]
    return Result("attention", [*tables, context.ceiling.table])


def _as_in_training() -> None:
    from sqat.train.allocator import keep_freed_memory

    keep_freed_memory()


def _table(context: Context, direction: str, length: int, *, module: bool) -> Table:
    settings = context.settings
    tokens = QUICK_TOKENS if settings.quick else TOKENS[settings.device]
    rows = max(1, tokens // length)
    make = _module if module else _core
    dtype = _training_dtype(settings.device)
    least = 0.001 if settings.quick else LEAST_SECONDS[settings.device]
    ceiling = context.ceiling.bf16 if dtype == torch.bfloat16 else context.ceiling.float32
    candidates: dict[str, Candidate] = {}
    for name in VARIANTS:
        counts = head_counts(name, HEADS)
        watch = Stopwatch(
            make(rows, length, *counts, HEAD_DIM, dtype, settings.device, direction == BOTH), settings.device, least
        )
        operations = OPERATIONS[direction] * rows * 2 * counts[0] * HEAD_DIM * length * (length + 1)
        candidates[name] = _milliseconds(watch, None if module else operations, ceiling)
    table = Table(title(direction, length, module=module), "ms", higher_is_better=False, baseline="mha")
    table.notes.append(f"{rows} × {length:,} tokens, {HEADS} heads of {HEAD_DIM} in full attention, {dtype}, causal")
    alternate(table, candidates, **context.alternation)
    for series in table.series:
        ideal = HEADS / head_counts(series.name, HEADS)[0]
        if not module and (ratios := table.ratios(series.name, "mha")):
            series.figures |= {"ideal": ideal, "share of ideal": Spread.of(ratios).median / ideal}
    return table


def _milliseconds(watch: Stopwatch, operations: float | None, ceiling: float) -> Candidate:
    def measure() -> Sample:
        seconds = watch().value
        if operations is None:
            return Sample(1000 * seconds)
        rate = operations / seconds
        return Sample(1000 * seconds, {"GFLOP/s": rate / 1e9, "share of ceiling": rate / ceiling})

    return measure


def attention_call(config: ModelConfig, rows: int, length: int, device: str, direction: str) -> Callable[[], Any]:
    """One call of `attend` with a model's heads, as training makes it; `direction` is `FORWARD` or `BOTH`."""
    heads = config.num_query_heads, config.num_kv_heads, config.head_dim
    return _core(rows, length, *heads, _training_dtype(device), device, direction == BOTH)


def _training_dtype(device: str) -> torch.dtype:
    """The type in which attention is computed in training."""
    mixed = torch.bfloat16 if use_bf16("auto", device) else torch.float32
    return kernel_dtype(torch.empty(0, device=device, dtype=mixed))


def _core(
    rows: int,
    length: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    backward: bool,
) -> Callable[[], Any]:
    """`attend` on tensors laid out as the projections leave them."""

    def heads(count: int) -> Tensor:
        x_BTHC = torch.randn(rows, length, count, head_dim, device=device, dtype=dtype)
        return x_BTHC.transpose(1, 2).requires_grad_(backward)

    inputs = heads(query_heads), heads(kv_heads), heads(kv_heads)
    gradient = torch.randn(rows, length, query_heads, head_dim, device=device, dtype=dtype).transpose(1, 2)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out_BHTC = attend(*inputs)
            if backward:
                torch.autograd.grad(out_BHTC, inputs, gradient)

    return run


def _module(
    rows: int,
    length: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    backward: bool,
) -> Callable[[], Any]:
    """The whole module as a training step runs it."""
    width = HEADS * head_dim
    attention = Attention(width, query_heads, kv_heads, head_dim).to(device)
    x_BTD = torch.randn(rows, length, width, device=device, requires_grad=backward)
    gradient = torch.randn(rows, length, width, device=device)
    inputs = (x_BTD, *attention.parameters())

    def run() -> None:
        autocast: AbstractContextManager[Any] = nullcontext()
        if use_bf16("auto", device):
            autocast = torch.autocast(device, dtype=torch.bfloat16)
        with torch.set_grad_enabled(backward), autocast:
            out_BTD = attention(x_BTD)
        if backward:
            torch.autograd.grad(out_BTD, inputs, gradient.to(out_BTD.dtype))

    return run
