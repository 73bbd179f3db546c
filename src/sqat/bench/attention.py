"""`sqat bench attention`: what fewer query heads buy, at growing context, beside full attention.

Shape letters: B rows, T tokens, H heads of full attention, Hq query heads, K key/value heads, C head_dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sqat.bench.results import Result, Spread, Table
from sqat.bench.settings import Context
from sqat.bench.timing import Candidate, Sample, Stopwatch, alternate
from sqat.config import ModelConfig
from sqat.cost import visible_keys
from sqat.model.attend import attend, kernel_dtype
from sqat.model.attention import Attention
from sqat.model.mask import AttentionMask
from sqat.train.step import use_bf16
from sqat.variants import VARIANTS, head_counts

HEADS, HEAD_DIM = 16, 16  # the card's mini family
WINDOWED, WINDOW, QUICK_WINDOW = "sw-sqa", 128, 7  # the window of the paper's table
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
    lengths = settings.lengths or (QUICK_LENGTHS if settings.quick else LENGTHS[settings.device])
    modules = QUICK_LENGTHS[:1] if settings.quick else MODULE_LENGTHS[settings.device]
    if settings.device == "cpu":
        _as_in_training()
    tables = [_table(context, direction, length, module=False) for length in lengths for direction in OPERATIONS]
    tables += [_table(context, BOTH, length, module=True) for length in modules]
    return Result("attention", [*tables, context.ceiling.table])


def _as_in_training() -> None:
    from sqat.cpu.allocator import keep_freed_memory

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
    shapes = _shapes(QUICK_WINDOW if settings.quick else WINDOW)
    for name, shape in shapes.items():
        watch = Stopwatch(make(rows, length, shape, dtype, settings.device, direction == BOTH), settings.device, least)
        operations = OPERATIONS[direction] * rows * shape.operations(length)
        candidates[name] = _milliseconds(watch, None if module else operations, ceiling)
    table = Table(title(direction, length, module=module), "ms", higher_is_better=False, baseline="mha")
    table.notes.append(f"{rows} × {length:,} tokens, {HEADS} heads of {HEAD_DIM} in full attention, {dtype}, causal")
    alternate(table, candidates, **context.alternation)
    for series in table.series:
        ideal = shapes["mha"].operations(length) / shapes[series.name].operations(length)
        if not module and (ratios := table.ratios(series.name, "mha")):
            series.figures |= {"ideal": ideal, "share of ideal": Spread.of(ratios).median / ideal}
    return table


class _Shape(NamedTuple):
    """What sets a candidate apart."""

    query_heads: int
    kv_heads: int
    window: int | None = None
    global_tokens: int = 0
    head_dim: int = HEAD_DIM

    @property
    def score_heads(self) -> int:
        return max(self.query_heads, self.kv_heads)

    def operations(self, length: int) -> int:
        """Of scores and weighted sums of one causal row, forward."""
        return 4 * self.score_heads * self.head_dim * visible_keys(length, self.window, self.global_tokens)


def _shapes(window: int) -> dict[str, _Shape]:
    """Every variant, and SQA under a window."""
    shapes = {name: _Shape(*head_counts(name, HEADS)) for name in VARIANTS}
    return {**shapes, WINDOWED: shapes["sqa"]._replace(window=window)}


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
    heads = config.num_query_heads, config.num_kv_heads, config.window, config.global_tokens, config.head_dim
    return _core(rows, length, _Shape(*heads), _training_dtype(device), device, direction == BOTH)


def _training_dtype(device: str) -> torch.dtype:
    """The type in which attention is computed in training."""
    mixed = torch.bfloat16 if use_bf16("auto", device) else torch.float32
    return kernel_dtype(torch.empty(0, device=device, dtype=mixed))


def _core(rows: int, length: int, shape: _Shape, dtype: torch.dtype, device: str, backward: bool) -> Callable[[], Any]:
    """`attend` on tensors laid out as the projections leave them."""

    def heads(count: int) -> Tensor:
        x_BTHC = torch.randn(rows, length, count, shape.head_dim, device=device, dtype=dtype)
        return x_BTHC.transpose(1, 2).requires_grad_(backward)

    inputs = heads(shape.query_heads), heads(shape.kv_heads), heads(shape.kv_heads)
    mask = None  # a stack of layers makes it once
    if shape.window is not None and shape.window < length:
        limits = shape.window, shape.global_tokens
        mask = AttentionMask(length, length, torch.device(device), window=limits[0], global_tokens=limits[1]).keep()
    gradient = torch.randn(rows, length, shape.score_heads, shape.head_dim, device=device, dtype=dtype).transpose(1, 2)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out_BHTC = attend(*inputs, mask=mask)
            if backward:
                torch.autograd.grad(out_BHTC, inputs, gradient)

    return run


def _module(
    rows: int, length: int, shape: _Shape, dtype: torch.dtype, device: str, backward: bool
) -> Callable[[], Any]:
    """The whole module as a training step runs it."""
    width = HEADS * HEAD_DIM
    attention = Attention(width, shape.query_heads, shape.kv_heads, HEAD_DIM, window=shape.window).to(device)
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
