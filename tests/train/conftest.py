"""A small run on the built-in stories, cheap enough to repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqat.config import ModelConfig
from sqat.run_config import DataConfig, RunConfig, TrainConfig

TINY = {
    "vocab_size": 307,
    "hidden_size": 20,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 10,
    "intermediate_size": 11,
    "context_length": 29,
    "num_experts": 3,
    "feedforward_dropout": 0.1,
}


@pytest.fixture
def run_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """`run_config(max_steps=7, model={...}, data={...}, …)`: a mixture-of-experts model with dropout on 61 stories."""

    def build(model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **train: Any) -> RunConfig:
        settings = {"batch_size": 5, "precision": "float32", "log_every": 1, "tensorboard": False, "max_steps": 7}
        return RunConfig(
            model=ModelConfig.from_dict({**TINY, **(model or {})}),
            data=DataConfig.from_dict(
                {"source": "stories:61", "validation_limit": 11, "cache_dir": str(tmp_path / "cache"), **(data or {})}
            ),
            train=TrainConfig.from_dict({**settings, **train}),
        )

    return build
