"""A small checkpoint and its tokenizer, to be damaged.

`make test` tries tens of inputs of each kind; `SQAT_FUZZ=N` (`make fuzz`) tries N.
"""

import sys
from pathlib import Path

import pytest

from sqat.checkpoint import save_model

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _readers_alone(sqat, monkeypatch):
    """Checksums would find all damage; without them, the readers themselves must."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sqat.checkpoint.store.write_checksums", lambda *arguments: None)


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tokenizer):
    """A small model with its tokenizer."""
    folder = save_model(tiny_model(vocab_size=307), tmp_path / "checkpoint")
    tokenizer.save(folder)
    return folder
