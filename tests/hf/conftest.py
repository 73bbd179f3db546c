"""What the tests of `sqat.hf` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from sqat.model import Decoder

logging.disable_progress_bar()

QUIRKS = {  # of the card's models
    "norm_eps": None,
    "final_norm": None,
    "tie_embeddings": False,
    "attention_out_bias": True,
    "feedforward_bias": True,
    "head_bias": True,
    "init": "torch",
    "feedforward_dropout": 0.1,
}


@pytest.fixture
def saved(tiny_model: Callable[..., Decoder], tmp_path: Path) -> Callable[..., Path]:
    """`saved(moe=True, …)`: a small model as a native checkpoint."""
    from sqat.checkpoint import save_model

    return lambda moe=False, **changes: save_model(tiny_model(moe, **changes), tmp_path / "native")


@pytest.fixture
def tokens() -> torch.Tensor:
    """(3, 17) token ids, none of them special."""
    return torch.randint(4, 41, (3, 17))
