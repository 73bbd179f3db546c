"""`long`: the paper's long-sequence table, whole models, ours beside the paper's figures.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.harness.results import Result, Table
from benchmarks.harness.settings import QUICK_MODEL, Context
from benchmarks.harness.timing import Candidate, Stopwatch, alternate

from sqat import Decoder, ModelConfig, preset
from sqat.data.batches import Batch
from sqat.train.step import TrainingLoss, autocast

MODELS = ("xsqat-m", "sqat-m", "ssqat-m", "mqa-ref-mini", "gqa-ref-mini", "mha-ref-mini")
WINDOWED = "swsqat-m"  # measured beside them
# Seconds of a forward pass on one A100-40GB, by (T, B): arXiv 2510.01817, the mini dense family.
PAPER: dict[tuple[int, int], tuple[float, ...]] = {
    (1_024, 128): (0.0570, 0.0642, 0.0669, 0.0760, 0.0785, 0.0869),
    (4_096, 32): (0.0637, 0.0750, 0.0793, 0.1001, 0.1027, 0.1114),
    (32_768, 4): (0.1348, 0.1991, 0.2117, 0.3612, 0.3637, 0.3727),
    (131_072, 1): (0.3759, 0.6308, 0.6630, 1.2530, 1.2558, 1.2648),
    (200_000, 1): (0.8194, 1.4116, 1.4824, 2.8555, 2.8596, 2.8734),
}
# Its "window 128" at the same sizes; the number of its heads is not in the table.
PAPER_WINDOW = {1_024: 0.0759, 4_096: 0.0794, 32_768: 0.1871, 131_072: 0.7531, 200_000: 1.1871}
QUICK_WINDOW = {"window": 7}
LENGTHS = {"cpu": (1_024, 4_096), "cuda": tuple(length for length, _ in PAPER)}
TOKENS = {"cpu": 4_096, "cuda": 131_072}  # of a batch, or one row where that is longer; on a GPU the paper's
QUICK_LENGTHS, QUICK_TOKENS = (23, 37), 69
FORWARD, BOTH = "forward", "forward+backward"


def title(direction: str, length: int, rows: int) -> str:
    """The table's name."""
    return f"whole model, {direction}, {length:,} × {rows}"


def measure_long(context: Context) -> Result:
    """Forward, and forward with backward, at every length."""
    settings = context.settings
    lengths = settings.lengths or (QUICK_LENGTHS if settings.quick else LENGTHS[settings.device])
    tokens = QUICK_TOKENS if settings.quick else TOKENS[settings.device]
    sizes = [(length, max(1, tokens // length)) for length in lengths]
    tables = [_table(context, direction, *size) for size in sizes for direction in (FORWARD, BOTH)]
    return Result("long", tables)


def _table(context: Context, direction: str, length: int, rows: int) -> Table:
    device, mha = context.settings.device, MODELS[-1]
    candidates: dict[str, Candidate] = {}
    for name in (WINDOWED, *MODELS):
        config = preset(name)
        if context.settings.quick:
            config = config.replace(**QUICK_MODEL, **(QUICK_WINDOW if config.window else {}))
        candidates[name] = Stopwatch(_run(config, length, rows, device, direction == BOTH), device)
    table = Table(title(direction, length, rows), "s", higher_is_better=False, baseline=mha)
    alternate(table, candidates, **context.alternation)
    if direction == FORWARD and (length, rows) in PAPER:
        paper = dict(zip(MODELS, PAPER[length, rows], strict=True))
        for series in table.series:
            seconds = paper.get(series.name, PAPER_WINDOW[length])
            series.figures |= {"paper, A100, s": seconds, "paper, against MHA": paper[mha] / seconds}
        table.notes.append(f'{WINDOWED}: beside it stands the paper\'s "window 128"')
    return table


def _run(config: ModelConfig, length: int, rows: int, device: str, backward: bool) -> Callable[[], Any]:
    """A pass over random tokens; forward ends in logits, as the paper's does, backward begins at the training loss."""
    model = Decoder(config).to(device)
    task = TrainingLoss(model)
    tokens_BT = torch.randint(4, config.vocab_size, (rows, length), device=device)
    batch = Batch(tokens_BT, tokens_BT.roll(-1, dims=1), None, None)

    def forward() -> None:
        with torch.inference_mode(), autocast("auto", device):
            model(tokens_BT)

    def both() -> None:
        with autocast("auto", device):
            loss = task(batch, tokens_BT.numel(), 1.0)[0]
        loss.backward()
        model.zero_grad()

    return both if backward else forward
