"""Metrics since the last log line."""

import torch

from sqat.model.moe import RouterStats
from sqat.train.metrics import MetricsWindow
from sqat.train.step import named_router_stats


def step(n):
    load = torch.tensor([1.0, 2.0, 3.0 * n])
    router = RouterStats(*(load if name.endswith("_E") else torch.tensor(7.0) for name in RouterStats._fields))
    sums = torch.tensor([0.1 * n, 5.0 + n, 11.0 + n, 0.3 / n, 1.7 * n, float(n == 2)])
    names = ("loss", "correct", "targets", "router_loss", "grad_norm", "skipped")
    return {**dict(zip(names, sums, strict=True)), **named_router_stats((router,))}


def read(window):
    return {name: value for name, value in window.read().items() if name not in ("tokens_per_second", "data_wait")}


def test_a_log_line_covers_steps_before_and_after_a_stop():
    whole, before, after = MetricsWindow(), MetricsWindow(), MetricsWindow()
    for n in (1, 2, 3, 4, 5):
        whole.add(step(n))
    for n in (1, 2, 3):
        before.add(step(n))
    before.seconds, before.data_seconds = 19.0, 3.0
    after.restore(before.tensors(), torch.device("cpu"))
    assert (after.seconds, after.data_seconds) == (19.0, 3.0)  # or few seconds would have brought many tokens
    for n in (4, 5):
        after.add(step(n))
    assert read(after) == read(whole)
