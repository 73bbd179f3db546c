"""A checkpoint in the other layout, and back: the same model, with its tokenizer and a card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sqat.checkpoint import load_model, save_model
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer
from sqat.errors import ConfigError
from sqat.formats import export
from sqat.model import Decoder

Model = Callable[..., Decoder]


def test_there_and_back(tiny_model: Model, tmp_path: Path) -> None:
    biases = dict.fromkeys(("attention_out_bias", "feedforward_bias", "head_bias"), True)
    others = {"norm_eps": None, "final_norm": None, "tie_embeddings": False, "init": "torch"}
    model = tiny_model(hidden_size=60, vocab_size=303, **biases, **others)
    folder = save_model(model, tmp_path / "first")
    train_tokenizer((story(i, seed=0, split="train") for i in range(20)), 303).save(folder)
    export(folder, tmp_path / "rxnn", "rxnn")
    export(tmp_path / "rxnn", tmp_path / "back", "sqat")
    for name, tensor in load_model(tmp_path / "back").state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    for other, words in (("rxnn", "The layout is that of RxNN"), ("back", "With sqat:")):
        assert (tmp_path / other / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
        assert words in (tmp_path / other / "README.md").read_text()


def test_another_layout_is_refused_and_nothing_is_left(tiny_model: Model, tmp_path: Path) -> None:
    folder = save_model(tiny_model(), tmp_path / "first")
    with pytest.raises(ConfigError, match="to is 'zip', but must be one of sqat, rxnn"):
        export(folder, tmp_path / "out", "zip")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["first"]
