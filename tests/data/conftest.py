"""What the tests of the data layer share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqat.data.tokenizer import Tokenizer, train_tokenizer
from sqat.data.tokens import TokenFile, build_tokens

TINYSTORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinystories"


class ListSource:
    """Documents from memory; their fingerprint is their content."""

    name = "a list"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def documents(self) -> Iterator[str]:
        yield from self.texts

    def fingerprint(self) -> str:
        return repr(self.texts)


@pytest.fixture
def list_source() -> type[ListSource]:
    return ListSource


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The cat sat on the mat. The dog sat on the cat.\n"] * 3, vocab_size=271)


@pytest.fixture(scope="session")
def tokens_of(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], TokenFile]:
    """A token file of some texts."""
    return lambda texts: build_tokens(ListSource(texts), tokenizer, tmp_path_factory.mktemp("tokens") / "file")


@pytest.fixture
def tinystories() -> Path:
    if not TINYSTORIES.is_dir():
        pytest.skip(f"{TINYSTORIES} is not here")
    return TINYSTORIES
