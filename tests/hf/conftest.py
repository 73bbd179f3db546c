"""What the tests of `sqat.hf` share."""

import pytest
import torch
from transformers.utils import logging

logging.disable_progress_bar()

QUIRKS = {  # of RxNN's models
    "norm_eps": None,
    "final_norm": None,
    "tie_embeddings": False,
    "attention_out_bias": True,
    "feedforward_bias": True,
    "head_bias": True,
    "init": "torch",
    "feedforward_dropout": 0.1,
}
KINDS = [
    {},
    {"moe": True, **QUIRKS},
    {"window": 5},
    {"window": 5, "global_tokens": 2},
    {"num_query_heads": 3, "num_kv_heads": 6},
]
PROMPTS = [[7, 11, 13], [5, 17, 29, 31, 37, 8, 9, 10, 12], [23]]


def padded(prompts):
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }


@pytest.fixture
def saved(tiny_model, tmp_path):
    """`saved(moe=True, …)`: a small model as a checkpoint of this package."""
    from sqat.checkpoint import save_model

    return lambda moe=False, **changes: save_model(tiny_model(moe, **changes), tmp_path / "own")


@pytest.fixture
def tokens():
    """(3, 17) token ids, none of them special."""
    return torch.randint(4, 41, (3, 17))
