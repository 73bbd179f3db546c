"""The machine's ceiling: what its matrix products alone reach, in FLOP/s."""

from __future__ import annotations

from typing import NamedTuple

import torch
from benchmarks.harness.results import Table
from benchmarks.harness.timing import Candidate, Sample, Stopwatch, alternate

# (M, K, N) of an (M, K) by (K, N) product: square ones, and tall ones as a training step has them.
SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (16384, 256, 512), (16384, 512, 1024)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (65536, 512, 2048)),
}
QUICK_SHAPES = ((64, 48, 80), (96, 32, 16))
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
LEAST_SECONDS = {"cpu": 0.2, "cuda": 0.05}


class Ceiling(NamedTuple):
    """The best rate of each type in FLOP/s, and the table behind it."""

    float32: float
    bf16: float
    table: Table


def measure_ceiling(device: str, rounds: int, *, quick: bool) -> Ceiling:
    """The best round of the best shape, for each type."""
    table = Table("matrix products alone", "GFLOP/s", notes=["the ceiling is the best round of the best shape"])
    candidates = {
        f"{name} {'×'.join(map(str, shape))}": _product(shape, dtype, device, quick)
        for name, dtype in TYPES.items()
        for shape in (QUICK_SHAPES if quick else SHAPES[device])
    }
    alternate(table, candidates, rounds=rounds)
    best = {
        name: max((series.spread.high for series in table.series if series.name.startswith(name)), default=0.0) * 1e9
        for name in TYPES
    }
    return Ceiling(best["float32"], best["bf16"], table)


def _product(shape: tuple[int, int, int], dtype: torch.dtype, device: str, quick: bool) -> Candidate:
    m, k, n = shape
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    watch = Stopwatch(lambda: torch.mm(a, b, out=out), device, 0.001 if quick else LEAST_SECONDS[device])
    return lambda: Sample(2 * m * k * n / watch().value / 1e9)
