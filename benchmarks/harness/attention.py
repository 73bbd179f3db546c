"""`attention`: what fewer query heads buy over full attention, at growing context.

Shape letters: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.harness.results import Result, Spread, Table
from benchmarks.harness.settings import Context
from benchmarks.harness.timing import Candidate, Sample, Stopwatch, alternate

from sqat import Attention, ModelConfig, head_counts
from sqat.bench import attention_call, training_dtype
from sqat.cost import visible_keys
from sqat.cpu.allocator import keep_freed_memory
from sqat.train.step import autocast
from sqat.variants import VARIANTS

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
    """Scores and weighted sum alone at every length; the whole module, projections included, at some."""
    settings = context.settings
    lengths = settings.lengths or (QUICK_LENGTHS if settings.quick else LENGTHS[settings.device])
    modules = settings.lengths or (QUICK_LENGTHS[:1] if settings.quick else MODULE_LENGTHS[settings.device])
    if settings.device == "cpu":
        keep_freed_memory()  # as training does
    tables = [_table(context, direction, length, module=False) for length in lengths for direction in OPERATIONS]
    tables += [_table(context, BOTH, length, module=True) for length in modules]
    return Result("attention", [*tables, context.ceiling.table])


def _table(context: Context, direction: str, length: int, *, module: bool) -> Table:
    settings, device = context.settings, context.settings.device
    rows = max(1, (QUICK_TOKENS if settings.quick else TOKENS[device]) // length)
    dtype = training_dtype(device)
    ceiling = context.ceiling.bf16 if dtype == torch.bfloat16 else context.ceiling.float32
    models = _models(QUICK_WINDOW if settings.quick else WINDOW)
    candidates: dict[str, Candidate] = {}
    for name, config in models.items():
        make = _module_call if module else attention_call
        call = make(config, rows, length, device, backward=direction == BOTH)
        watch = Stopwatch(call, device, 0.001 if settings.quick else LEAST_SECONDS[device])
        operations = OPERATIONS[direction] * rows * _operations(config, length)
        candidates[name] = _milliseconds(watch, None if module else operations, ceiling)
    table = Table(title(direction, length, module=module), "ms", higher_is_better=False, baseline="mha")
    table.notes.append(f"{rows} × {length:,} tokens, {HEADS} heads of {HEAD_DIM} in full attention, {dtype}, causal")
    alternate(table, candidates, **context.alternation)
    for series in table.series:
        ideal = _operations(models["mha"], length) / _operations(models[series.name], length)
        if not module and (ratios := table.ratios(series.name, "mha")):
            series.figures |= {"ideal": ideal, "share of ideal": Spread.of(ratios).median / ideal}
    return table


def _models(window: int) -> dict[str, ModelConfig]:
    """One layer of every variant, and SQA under a window."""
    sizes = {"vocab_size": 5, "hidden_size": HEADS * HEAD_DIM, "num_layers": 1, "head_dim": HEAD_DIM}
    sizes |= {"intermediate_size": 1, "context_length": 2}

    def model(variant: str, **changes: Any) -> ModelConfig:
        query, kv = head_counts(variant, HEADS)
        return ModelConfig.from_dict({**sizes, "num_query_heads": query, "num_kv_heads": kv, **changes})

    return {**{name: model(name) for name in VARIANTS}, WINDOWED: model("sqa", window=window)}


def _operations(config: ModelConfig, length: int) -> int:
    """Floating-point operations of scores and weighted sums of one causal row, forward."""
    keys = visible_keys(length, config.window, config.global_tokens)
    return 4 * config.num_score_heads * config.head_dim * keys


def _milliseconds(watch: Stopwatch, operations: float | None, ceiling: float) -> Candidate:
    def measure() -> Sample:
        seconds = watch().value
        if operations is None:
            return Sample(1000 * seconds)
        rate = operations / seconds
        return Sample(1000 * seconds, {"GFLOP/s": rate / 1e9, "share of ceiling": rate / ceiling})

    return measure


def _module_call(config: ModelConfig, rows: int, length: int, device: str, *, backward: bool) -> Callable[[], Any]:
    """The whole module as a training step runs it."""
    heads = config.num_query_heads, config.num_kv_heads, config.head_dim
    attention = Attention(config.hidden_size, *heads, window=config.window).to(device)
    x_BTD = torch.randn(rows, length, config.hidden_size, device=device, requires_grad=backward)
    gradient_BTD = torch.randn(rows, length, config.hidden_size, device=device)
    inputs = (x_BTD, *attention.parameters())

    def run() -> None:
        with torch.set_grad_enabled(backward), autocast("auto", device):
            out_BTD = attention(x_BTD)
        if backward:
            torch.autograd.grad(out_BTD, inputs, gradient_BTD.to(out_BTD.dtype))

    return run
