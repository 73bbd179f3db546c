"""A small checkpoint and its tokenizer, to be damaged.

`make test` tries tens of inputs of each kind; `SQAT_FUZZ=N` (`make fuzz`) tries N.
"""

import sys
from pathlib import Path

import pytest

from sqat.checkpoint import save_model
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer

sys.path.append(str(Path(__file__).parent))

STORIES = [story(i, seed=0, split="train") for i in range(20)]


@pytest.fixture(autouse=True)
def _readers_alone(sqat, monkeypatch):
    """Checksums would find all damage; without them, the readers themselves must."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sqat.checkpoint.store.write_checksums", lambda *arguments: None)


@pytest.fixture
def tokenizer():
    return train_tokenizer(STORIES, 300)


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tokenizer):
    """A small model with its tokenizer."""
    folder = save_model(tiny_model(vocab_size=307), tmp_path / "checkpoint")
    tokenizer.save(folder)
    return folder
