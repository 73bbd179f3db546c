"""What the tests of the card's import paths share."""

from pathlib import Path

import pytest

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.tokenizer import to_transformers
from sqat.data.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONFORMANCE = {
    path.parent.name: path.parent
    for folder in (ROOT / "tests" / "conformance", ROOT.parent / "shared" / "conformance")
    for path in sorted(folder.glob("*/golden.safetensors"))
}

ARGUMENTS = {
    "num_layers": 2,
    "vocab_size": 307,
    "embed_dim": 24,
    "ff_dim": 13,
    "seq_len": 19,
    "ff_activation": "silu",
    "att_type": "sqa",
    "att_heads": 4,
    "att_num_query_groups": 2,
    "att_groups": 1,
}
MOE = {"use_moe_ff": True, "ff_num_experts": 5, "ff_moe_top_k": 2}

STORIES = [f"Once upon a time {name} saw a {thing}. {name} was {mood}." for name in ("Tom", "Lily", "Ben")
           for thing in ("cat", "big dog", "ball") for mood in ("happy", "sad", "so very glad that day")]  # fmt: skip


@pytest.fixture(params=CONFORMANCE.values(), ids=CONFORMANCE)
def case(request):
    """A checkpoint of the original, with what it computed from it."""
    return request.param


@pytest.fixture
def small_model():
    """`small_model(moe=True, ff_dropout=0.1, …)`."""

    def build(moe=False, **changes):
        return ExperimentalAttentionTransformer(**{**ARGUMENTS, **(MOE if moe else {}), **changes})

    return build


@pytest.fixture
def stories():
    return list(STORIES)


@pytest.fixture(scope="session")
def tokenizer():
    return to_transformers(train_tokenizer(STORIES, ARGUMENTS["vocab_size"]))
