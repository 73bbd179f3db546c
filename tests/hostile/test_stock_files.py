"""Stock checkpoints: what `transformers` would fetch, run or allocate on their word."""

import json
import re

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sqat.convert.files import locate, read_config, read_model
from sqat.convert.tokenizer import StockTokenizer
from sqat.errors import CheckpointError, ConfigError


@pytest.fixture
def folder(tmp_path, tokenizer):
    sizes = {"vocab_size": 307, "hidden_size": 24, "intermediate_size": 13, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 61}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "stock")
    tokenizer.save(tmp_path / "stock")
    return tmp_path / "stock"


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_map", {"AutoConfig": "evil.Config"}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("attn_implementation", "somebody/kernel"),
        ("_attn_implementation", "somebody/kernel"),
        ("experts_implementation", "somebody/kernel"),
    ],
)
def test_what_may_bring_code_is_refused_by_name(folder, field, value):
    (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    change(folder / "config.json", **{field: value})
    with pytest.raises(ConfigError, match=re.escape(f"config.json: {field} is {value!r}, but must not be there")):
        read_config(folder)
    with pytest.raises(ConfigError, match=field):
        read_model(folder)


def test_a_tokenizer_s_code_adapters_and_pickled_weights_are_not_read(folder):
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: auto_map is there, but must not"):
        StockTokenizer(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    with pytest.raises(CheckpointError, match=r"holds adapter_config\.json, but must not"):
        read_model(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        read_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 1 << 23, "asks for a model of .* numbers"),
        ("intermediate_size", 1 << 22, "asks for a model of .* numbers"),
        ("num_hidden_layers", 1000, "asks for a model of .* numbers"),
        ("num_hidden_layers", 10**12, "num_hidden_layers is 1000000000000, but must be"),
        ("vocab_size", 10**15, "vocab_size is 1000000000000000, but must be a whole number from 1 to"),
        ("dtype", "load", "dtype is 'load', but must be one of float32"),
        ("hidden_size", True, "hidden_size is True, but must be a whole number|cannot be read"),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_sizes_are_held_to_the_weights(folder, field, value, message):
    change(folder / "config.json", **{field: value})
    with pytest.raises((CheckpointError, ConfigError), match=message):
        read_model(folder)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
def test_a_conversion_copies_no_file_of_the_user_s(folder, tmp_path, name, sqat):
    """By the command, which leaves nothing behind."""
    (tmp_path / "key").write_text("private")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "key")
    code, _, err = sqat("convert", "stock", "--out", "out", "--query-heads", "2", "--method", "mean")
    assert code == 1
    assert re.search(rf"{re.escape(name)} is a link to .*key", " ".join(err.split()))
    assert {path.name for path in tmp_path.iterdir()} <= {"key", "stock", "cache"}


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "~nobody-of-this-name/model"])
def test_names_that_no_folder_has(name):
    with pytest.raises(CheckpointError, match=r"names no folder|cannot be had"):
        locate(name)
