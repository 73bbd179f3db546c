"""A small checkpoint and its tokenizer, to be damaged, and a bound on memory."""

import resource

import pytest

from sqat.checkpoint import save_model

SPARE_BYTES = 3 << 30  # of addresses, beyond what the process has when a test begins


@pytest.fixture(autouse=True)
def _readers_alone(sqat, monkeypatch):
    """Checksums would find all damage; without them, the readers themselves must."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sqat.store.write_checksums", lambda *arguments: None)


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tokenizer):
    """A small model with its tokenizer."""
    folder = save_model(tiny_model(vocab_size=307), tmp_path / "checkpoint")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def little_memory():
    """What asks for more than `SPARE_BYTES` gets a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
