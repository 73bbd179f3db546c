"""Unusable settings are one clear line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sqat.bench.results import NotMeasured
from sqat.bench.settings import BenchSettings, Context
from sqat.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "BenchSettings.rounds is 0, but must be at least 1"),
        ({"device": "tpu"}, "BenchSettings.device is 'tpu', but must be one of cpu, cuda"),
        ({"model": "sqat-mmm"}, "unknown preset 'sqat-mmm'; did you mean 'sqat-mm'?"),
        (
            {"model": "swsqat-mm"},
            "BenchSettings.model is 'swsqat-mm', but must be a preset without a window and without",
        ),
        ({"model": "rsqat-m"}, "BenchSettings.model is 'rsqat-m', but must be a preset without a window and"),
        ({"lengths": (4096, 0)}, r"BenchSettings.lengths is \(4096, 0\), but must be positive numbers of tokens"),
        ({"minutes": 0.0}, "BenchSettings.minutes is 0.0, but must be positive"),
    ],
)
def test_unusable_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        BenchSettings(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"device is 'cuda', but must be cpu, since no GPU is available"):
        BenchSettings(device="cuda")


def test_quick_sizes_keep_the_attention() -> None:
    full, quick = BenchSettings().config, BenchSettings(quick=True).config
    assert (quick.num_query_heads, quick.num_kv_heads, quick.head_dim) == (4, 2, 16)
    assert quick.num_layers < full.num_layers


def test_a_part_of_the_time_leaves_the_rest_for_later(context: Callable[..., Context]) -> None:
    made = context()
    made.deadline = time.monotonic() + 1000
    whole = made.deadline
    with made.part(0.25):
        assert 200 < made.seconds_left() <= 250
    assert made.deadline == whole
    made.deadline = time.monotonic() - 1
    with pytest.raises(NotMeasured, match="time budget"):
        made.seconds_left()
