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


def config(tmp_path, **fields):
    return DataConfig.from_dict({"cache_dir": str(tmp_path / "cache"), **fields})


def test_one_document_in_a_hundred_is_held_out(tmp_path):
    data = prepare_data(config(tmp_path, source=str(documents_file(tmp_path, 307))), vocab_size=269)
    assert (len(data.train), len(data.validation)) == (304, 3)
    texts = [data.tokenizer.decode(data.validation.document(i).tolist()) for i in range(3)]
    assert texts == ["document number 99", "document number 199", "document number 299"]


def test_too_few_documents_to_hold_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = prepare_data(config(tmp_path, source=str(documents_file(tmp_path, 1))), vocab_size=269)
    assert (len(data.train), data.validation) == (1, None)
    assert "nothing is held out" in caplog.text


def test_validation_source_of_its_own(tmp_path):
    train, validation = documents_file(tmp_path, 7), documents_file(tmp_path, 5, "other.txt")
    data = prepare_data(config(tmp_path, source=str(train), validation=str(validation)), vocab_size=269)
    assert (len(data.train), len(data.validation)) == (7, 5)


def test_tokenizer_and_tokens_are_made_once(tmp_path, monkeypatch):
    settings = config(tmp_path, source="stories:31", validation_limit=3)
    first = prepare_data(settings, vocab_size=301)
    monkeypatch.setattr("sqat.train.prepare.train_tokenizer", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr("sqat.data.tokens.build_tokens", lambda *_, **__: pytest.fail("tokenised again"))
    second = prepare_data(settings, vocab_size=301)
    assert first.tokenizer.fingerprint() == second.tokenizer.fingerprint()
    assert first.train.folder == second.train.folder


def test_tokenizer_larger_than_the_model(tmp_path):
    train_tokenizer(["abc abc abd"], 263).save(tmp_path / "tokenizer")
    settings = config(tmp_path, source="stories:7", tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(ConfigError, match=r"the tokenizer has 26[0-9] entries, but the model's vocab_size is 251"):
        prepare_data(settings, vocab_size=251)


def test_empty_source_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.txt"):
        prepare_data(config(tmp_path, source=str(tmp_path / "empty.txt")), vocab_size=269)
