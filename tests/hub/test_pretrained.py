"""`sqat convert` of a pretrained model on a Hub, through the real client."""

import sys

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, LlamaConfig

from sqat.cli import main
from sqat.convert.files import locate, quiet
from sqat.errors import CheckpointError

MODEL = "somebody/llama"


@pytest.fixture(autouse=True)
def client(hub, tmp_path, monkeypatch):
    """The client of this process, pointed at the Hub, which has a small Llama in two files and one to leave alone."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 41, "hidden_size": 24, "intermediate_size": 13, "num_hidden_layers": 2, "head_dim": 10}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2))
    with quiet():
        model.save_pretrained("llama", max_shard_size="20KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "llama").iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) > 1
    hub.add(MODEL, {**files, "pytorch_model.bin": b"never to be fetched"})


def test_a_hub_id_is_converted(hub, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["sqat", "convert", MODEL, "--query-heads", "2", "--method", "mean", "--out", "out"]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    model = AutoModelForCausalLM.from_pretrained("out")
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 2)
    assert not [path for _, path, _ in hub.requests if path.endswith(".bin")]


def test_an_id_that_is_not_there_is_named():
    with pytest.raises(CheckpointError, match=r"'somebody/else' is no local folder, and cannot be had from the Hub"):
        locate("somebody/else")
