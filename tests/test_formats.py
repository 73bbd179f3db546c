"""The forms of a model: which one a folder holds, and export, which is whole or absent and the same model."""

from unittest.mock import Mock

import pytest
import torch

from sqat.checkpoint import load_model, save_model
from sqat.errors import CheckpointError, ConfigError
from sqat.formats import detect, export


@pytest.fixture
def checkpoint(rxnn_model, tokenizer, tmp_path):
    """A small model that RxNN's layout can hold, with a tokenizer."""
    folder = save_model(rxnn_model(vocab_size=303, init="torch"), tmp_path / "first")
    tokenizer.save(folder)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_from_one_layout_to_the_other_and_back(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "rxnn", "rxnn")
    export(tmp_path / "rxnn", tmp_path / "back", "sqat")
    models = [load_model(folder).state_dict() for folder in (tmp_path / "back", checkpoint)]
    torch.testing.assert_close(*models, rtol=0, atol=0)
    for other, words in (("rxnn", "The layout is that of RxNN"), ("back", "With sqat:")):
        assert (tmp_path / other / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
        assert words in (tmp_path / other / "README.md").read_text()


@pytest.mark.parametrize("to", ["sqat", "rxnn", "transformers"])
def test_what_was_exported_is_detected(to, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder may be there
    export(checkpoint, tmp_path / "out", to)
    assert detect(tmp_path / "out") == to


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("model.gguf", "", "gguf"),
        ("model.onnx", "", "onnx"),
        ("config.json", '{"model_type": "mixtral"}', "stock"),
        ("config.json", '{"model_type": "mixed_heads_llama"}', "mixed"),
    ],
)
def test_other_forms_are_detected(name, content, form, tmp_path):
    (tmp_path / name).write_text(content)
    assert detect(tmp_path) == form


def test_nothing_is_half_written(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="to is 'zip', but must be one of sqat, rxnn, transformers, stock, gguf"):
        export(checkpoint, tmp_path / "out", "zip")
    with pytest.raises(ConfigError, match="which exists and is not empty"):
        export(checkpoint, checkpoint)
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "out")
    monkeypatch.setattr("sqat.hf.pretrained.write_tokenizer", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export(checkpoint, tmp_path / "out")
    assert names(tmp_path) == ["first"]


@pytest.mark.parametrize("to", ["sqat", "transformers", "stock"])
def test_without_a_tokenizer(to, tiny_model, tmp_path):
    export(save_model(tiny_model(), tmp_path / "first"), tmp_path / "out", to)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert "okenizer" not in (tmp_path / "out" / "README.md").read_text()


def test_a_tokenizer_that_is_too_large(tiny_model, tokenizer, tmp_path):
    folder = save_model(tiny_model(), tmp_path / "first")
    tokenizer.save(folder)
    with pytest.raises(ConfigError, match="has 303 entries, but the model's vocab_size is 41"):
        export(folder, tmp_path / "out")
