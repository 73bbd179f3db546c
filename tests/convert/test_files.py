import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqat.convert.architectures import MIXED_TYPES
from sqat.convert.files import locate, read_config, read_model
from sqat.convert.tokenizer import StockTokenizer, token_rows
from sqat.errors import CheckpointError, ConfigError, DataError


def test_what_is_no_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no config.json"):
        locate(tmp_path)
    with pytest.raises(CheckpointError, match=r"'./nowhere' is no local folder, and cannot be had from the Hub"):
        locate("./nowhere")


def test_damaged_weights_are_named(stock_folder):
    weights = stock_folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or truncated"):
        read_model(weights.parent)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", CheckpointError, r"config.json cannot be read"),
        ('{"model_type": "bitnet"}', ConfigError, r"model_type is 'bitnet', whose heads cannot be taken: its weights"),
        (
            '{"model_type": "nonsense"}',
            ConfigError,
            r"config.json: model_type is 'nonsense', but must be that of a causal language model",
        ),
        (
            '{"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}',
            CheckpointError,
            r"config.json cannot be read",
        ),
    ],
)
def test_unusable_configurations_are_named(text, error, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        read_config(tmp_path)


def test_documents_begin_and_end_as_the_tokenizer_says(stock_folder):
    tokenizer = StockTokenizer(stock_folder())
    ids = tokenizer.encode_documents(["The cat", "sat"])
    assert [(document[0], document[-1]) for document in ids] == [(2, 3), (2, 3)]
    assert tokenizer.vocab_size <= 307
    assert tokenizer.fingerprint() == StockTokenizer(tokenizer.backend.name_or_path).fingerprint()


def test_rows_of_text(stock_folder, tmp_path):
    tokenizer = StockTokenizer(stock_folder())
    path = tmp_path / "text.txt"
    path.write_text("The cat sat.\n\nIt purred.\n\nIt slept.")
    ids = [token for document in tokenizer.encode_documents(["The cat sat.", "It purred."]) for token in document]
    whole = token_rows([f"{path}:2"], tokenizer, 10_000, 307, tokens=10_000)
    assert whole.tolist() == [ids]
    rows = token_rows([f"{path}:2"], tokenizer, 5, 307, tokens=10_000)
    assert rows.flatten().tolist() == ids[: rows.numel()]
    assert rows.shape == (len(ids) // 5, 5)
    assert rows.dtype == torch.int64
    assert len(token_rows(["stories:3"], tokenizer, 7, 307, tokens=10_000)) > 5
    mixed = token_rows([f"{path}:2", "stories:3"], tokenizer, 7, 307, tokens=14)
    assert mixed.tolist()[0] == ids[:7]
    assert mixed.tolist()[1:] == token_rows(["stories:3"], tokenizer, 7, 307, tokens=7).tolist()
    with pytest.raises(ConfigError, match=r"asks for 0 documents, but must ask for 1 or more"):
        token_rows([f"{path}:0"], tokenizer, 5, 307, tokens=10_000)
    with pytest.raises(DataError, match=r"no such file or folder"):
        token_rows(["./missing.txt:3"], tokenizer, 5, 307, tokens=10_000)
    with pytest.raises(ConfigError, match=r"gives token \d+, but the model's vocab_size is 100"):
        token_rows([f"{path}:2"], tokenizer, 5, 100, tokens=10_000)


def test_a_damaged_tokenizer_or_none_is_named(stock_folder):
    folder = stock_folder()
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer.json: damaged, or not|has a tokenizer that .* cannot read"):
        StockTokenizer(folder)
    for path in Path(folder).glob("token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: no tokenizer.json"):
        StockTokenizer(folder)


@pytest.mark.parametrize("name", MIXED_TYPES)
def test_written_checkpoints_are_stock(name, converted, rows, tmp_path):
    result, out = converted(name, query_heads=6, method="cluster", score="norm")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(loaded) is type(result) is type(read_model(tmp_path / "pretrained"))
    values = json.loads((out / "config.json").read_text())
    assert (values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"]) == (6, 2, 10)
    torch.testing.assert_close(loaded(rows).logits, result(rows).logits)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (out, tmp_path / "pretrained")]
    assert tokenizers[0]("The cat").input_ids == tokenizers[1]("The cat").input_ids
    record = json.loads((out / "conversion.json").read_text())
    assert sorted(h for group in record["merged_heads"][2] for h in group) == list(range(12))
