"""What the tests of the data layer share."""

from pathlib import Path

import pytest

from sqat.data.tokenizer import train_tokenizer
from sqat.data.tokens import build_tokens

TINYSTORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinystories"


class ListSource:
    """Documents from memory; their fingerprint is their content."""

    name = "a list"

    def __init__(self, texts):
        self.texts = texts

    def documents(self):
        yield from self.texts

    def fingerprint(self):
        return repr(self.texts)


@pytest.fixture
def list_source():
    return ListSource


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["The cat sat on the mat. The dog sat on the cat.\n"] * 3, vocab_size=271)


@pytest.fixture(scope="session")
def tokens_of(tokenizer, tmp_path_factory):
    """A token file of some texts."""
    return lambda texts: build_tokens(ListSource(texts), tokenizer, tmp_path_factory.mktemp("tokens") / "file")


@pytest.fixture
def tinystories():
    if not TINYSTORIES.is_dir():
        pytest.skip(f"{TINYSTORIES} is not here")
    return TINYSTORIES
