import logging

import pytest

from sqat.data.tokenizer import train_tokenizer
from sqat.errors import ConfigError, DataError
from sqat.run_config import DataConfig
from sqat.train.prepare import prepare_data


def documents_file(folder, count, name="texts.txt"):
    path = folder / name
    path.write_text("<|endoftext|>".join(f"document number {i}" for i in range(count)))
    return path


@pytest.fixture
def prepare(tmp_path):
    def prepare(source, vocab_size=269, **fields):
        fields = {"cache_dir": tmp_path / "cache", "source": source, **fields}
        return prepare_data(DataConfig.from_dict({k: str(v) for k, v in fields.items()}), vocab_size=vocab_size)

    return prepare


def test_one_document_in_a_hundred_is_held_out(prepare, tmp_path):
    data = prepare(documents_file(tmp_path, 307))
    assert (len(data.train), len(data.validation)) == (304, 3)
    texts = [data.tokenizer.decode(data.validation.document(i).tolist()) for i in range(3)]
    assert texts == ["document number 99", "document number 199", "document number 299"]


def test_too_few_documents_to_hold_out(prepare, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = prepare(documents_file(tmp_path, 1))
    assert (len(data.train), data.validation) == (1, None)
    assert "nothing is held out" in caplog.text


def test_validation_source_of_its_own(prepare, tmp_path):
    data = prepare(documents_file(tmp_path, 7), validation=documents_file(tmp_path, 5, "other.txt"))
    assert (len(data.train), len(data.validation)) == (7, 5)


def test_tokenizer_and_tokens_are_made_once(prepare, monkeypatch):
    first = prepare("stories:31", 301, validation_limit=3)
    monkeypatch.setattr("sqat.train.prepare.train_tokenizer", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("sqat.data.tokens.build_tokens", lambda *_, **__: pytest.fail("tokenised again"))
    second = prepare("stories:31", 301, validation_limit=3)
    assert first.tokenizer.fingerprint() == second.tokenizer.fingerprint()
    assert first.train.folder == second.train.folder


def test_a_tokenizer_larger_than_the_model_or_an_empty_source_is_named(prepare, tmp_path):
    train_tokenizer(["abc abc abd"], 263).save(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"the tokenizer has 26[0-9] entries, but the model's vocab_size is 251"):
        prepare("stories:7", 251, tokenizer=tmp_path / "tokenizer")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.txt"):
        prepare(tmp_path / "empty.txt")
