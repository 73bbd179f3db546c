"""`sqat convert` of a pretrained model on a Hub, through the real client."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, LlamaConfig

from sqat.convert.files import locate, quiet
from sqat.errors import CheckpointError
from sqat.sharing import pull, push
from sqat.train.state import TrainState
from sqat.uptrain_config import UptrainConfig

MODEL = "somebody/llama"
STATE = TrainState(
    step=7, tokens=301, evaluation={"step": 7, "loss": 2.5, "accuracy": 0.25, "targets": 31, "card_loss": None}
)


@pytest.fixture(autouse=True)
def pretrained(hub, client, tmp_path, monkeypatch):
    """The Hub has a small Llama in two files, and one to leave alone."""
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 41, "hidden_size": 24, "intermediate_size": 13, "num_hidden_layers": 2, "head_dim": 10}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2))
    with quiet():
        model.save_pretrained("llama", max_shard_size="20KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "llama").iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) > 1
    hub.add(MODEL, {**files, "pytorch_model.bin": b"never to be fetched"})


def test_a_hub_id_is_converted(hub, sqat):
    assert sqat("convert", MODEL, "--query-heads", "2", "--method", "mean", "--out", "out")[0] == 0
    model = AutoModelForCausalLM.from_pretrained("out")
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 2)
    assert not [path for _, path, _ in hub.requests if path.endswith(".bin")]
    card = ModelCard.load("out/README.md")
    assert card.data.to_dict() == {
        "base_model": MODEL,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["SparseQueryAttention", "SQA"],
    }
    assert f"Made by `sqat convert` from `{MODEL}`, whose 6 query heads became 2 (method `mean`)." in card.text


def test_what_was_converted_is_pushed_and_pulled(hub, sqat, monkeypatch):
    """Also after uptraining, whose checkpoints tell of the conversion."""
    folder = Path("run/checkpoints/step-00000007")
    assert sqat("convert", MODEL, "--query-heads", "2", "--method", "mean", "--out", str(folder))[0] == 0
    (folder / "README.md").unlink()  # as an uptrained one
    (folder / "training.json").write_text(json.dumps({**asdict(STATE), "data": STATE.data._asdict()}))
    run = UptrainConfig.from_dict({"model": {"path": "half", "tokens": 300, "teacher": MODEL}})
    Path("run/config.yaml").write_text(yaml.safe_dump(run.to_dict()))
    push("run", "somebody/half", token="hf_x")
    pulled = pull("somebody/half")
    for name in ("model.safetensors", "config.json", "conversion.json"):
        assert (pulled / name).read_bytes() == (folder / name).read_bytes()
    assert not (pulled / "training.json").exists()
    card = ModelCard.load(pulled / "README.md")
    assert card.data.base_model == MODEL
    assert f"teacher: {MODEL}" in card.text
    assert "| loss | 2.5000 |" in card.text
    assert "counting padding" not in card.text


def test_an_id_that_is_not_there_is_named():
    with pytest.raises(CheckpointError, match=r"'somebody/else' is no local folder, and cannot be had from the Hub"):
        locate("somebody/else")
