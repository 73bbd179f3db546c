"""`sqat export`: what is written loads where sqat is not, and is the same model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqat.checkpoint import save_model
from sqat.data.tokenizer import Tokenizer
from sqat.errors import ConfigError
from sqat.formats import export
from sqat.generate import SamplingConfig, generate
from sqat.hf.stock import choose, to_stock
from sqat.model import Decoder
from sqat.variants import PRESETS, of_family, preset

from .conftest import QUIRKS

VOCABULARY = 303  # as the tokenizer's


@pytest.fixture
def checkpoint(tiny_model, tokenizer, tmp_path):
    """`checkpoint(moe=True, …)`: a small model, and the folder that it is saved in with a tokenizer."""

    def build(moe=False, **changes):
        core = tiny_model(moe, vocab_size=VOCABULARY, **changes)
        folder = save_model(core, tmp_path / "checkpoint")
        tokenizer.save(folder)
        return core, folder

    return build


LOAD = """
import json, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
def load(folder, **trust):
    model = AutoModelForCausalLM.from_pretrained(folder, **trust)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    tokenizer.padding_side = "left"
    inputs = tokenizer(["Once upon a time", "A cat"], return_tensors="pt", padding=True)
    output = model.generate(**inputs, max_new_tokens=9, do_sample=False)
    return {
        "class": type(model).__name__, "base": type(AutoModel.from_pretrained(folder, **trust)).__name__,
        "module": type(model).__module__.partition(".")[0],
        "logits": model(torch.arange(4, 21).unsqueeze(0)).logits[0].tolist(),
        "answers": [[i for i in row if i != 3] for row in output[:, inputs["input_ids"].shape[1]:].tolist()],
        "ids": tokenizer("A cat").input_ids,
        "text": tokenizer.decode(tokenizer("A cat").input_ids, skip_special_tokens=True),
    }
found = {name: load(name, trust_remote_code=True) for name in ("plain", "quirks", "window", "reverse")}
print(json.dumps({**found, "stock": load("stock")}))
"""
EXPORTED = {
    "plain": {},
    "quirks": {"moe": True, **QUIRKS},
    "window": {"window": 5, "global_tokens": 2},
    "reverse": {"num_query_heads": 3, "num_kv_heads": 6},
    "stock": {"hidden_size": 24},
}


@pytest.mark.slow
def test_exports_run_without_sqat(checkpoint, tokenizer, without_sqat, tmp_path):
    cores = {}
    for name, changes in EXPORTED.items():
        cores[name], folder = checkpoint(**changes)
        export(folder, tmp_path / "out" / name, "stock" if name == "stock" else "transformers")
    for name, found in without_sqat(LOAD, tmp_path / "out").items():
        kind = "Llama" if name == "stock" else "SQAT"
        assert (found["class"], found["base"]) == (f"{kind}ForCausalLM", f"{kind}Model")
        assert found["module"] == ("transformers" if name == "stock" else "transformers_modules")
        core = cores.pop(name)
        with torch.no_grad():
            logits = core(torch.arange(4, 21).unsqueeze(0)).logits[0]
        torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=1e-5, atol=1e-5)
        answers = generate(core, tokenizer, ["Once upon a time", "A cat"], SamplingConfig(temperature=0, max_tokens=9))
        assert [tuple(row) for row in found["answers"]] == [answer.tokens for answer in answers]
        assert found["ids"] == [2, *tokenizer.encode("A cat")]
        assert found["text"] == "A cat"
    assert not cores


def test_a_transformers_export_is_read_by_sqat_and_its_card_is_true(checkpoint, tmp_path, monkeypatch):
    from sqat.checkpoint import load_model

    core, folder = checkpoint()
    out = tmp_path / "out"
    export(folder, out)
    assert torch.equal(load_model(out).embedding.weight, core.embedding.weight)
    assert Tokenizer.load(out).encode("a cat") == Tokenizer.load(folder).encode("a cat")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 3
    card = (out / "README.md").read_text()
    assert "library_name: transformers\npipeline_tag: text-generation" in card
    assert "6 query heads, 3 key/value heads" in card
    assert "## Training" not in card  # nothing is on record
    monkeypatch.chdir(out)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    exec(card.split("```python\n")[1].split("```")[0], {})


WHOLE = {"hidden_size": 24, "intermediate_size": 16}  # rows of whole 16-byte pieces, which Mixtral needs by default
STOCK = [
    ({}, "Mistral"),  # 6 heads do not divide a width of 23
    ({"hidden_size": 24}, "Llama"),
    ({"hidden_size": 24, "tie_embeddings": False, "norm_eps": None, "activation": "gelu"}, "Llama"),
    ({"hidden_size": 24, "qkv_bias": True}, "Llama"),
    ({"hidden_size": 24, "attention_out_bias": True, "feedforward_bias": True}, "Llama"),
    ({"hidden_size": 24, "window": 5, "rope_theta": 500.0}, "Mistral"),
    ({"moe": True, **WHOLE}, "Mixtral"),
    ({"moe": True, **WHOLE, "window": 5, "experts_per_token": 3}, "Mixtral"),
]


@pytest.mark.parametrize(("changes", "name"), STOCK, ids=str)
def test_stock_is_the_same_model(changes, name, checkpoint, tokenizer, tmp_path):
    core, folder = checkpoint(**changes)
    out = tmp_path / "out"
    assert export(folder, out, "stock") == name
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == f"{name}ForCausalLM"
    tokens = torch.randint(4, VOCABULARY, (3, 17))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, core(tokens).logits, rtol=1e-5, atol=1e-5)
    inputs = AutoTokenizer.from_pretrained(out)("A cat", return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = generate(core, tokenizer, "A cat", SamplingConfig(temperature=0, max_tokens=9))
    assert tuple(token for token in written.tolist() if token != 3) == answer.tokens


def test_mixtral_of_odd_sizes_runs_in_a_loop_and_has_the_names_that_other_engines_know(checkpoint, tmp_path):
    core, folder = checkpoint(moe=True)
    export(folder, tmp_path / "out", "stock")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", experts_implementation="eager")
    tokens = torch.randint(4, VOCABULARY, (3, 17))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, core(tokens).logits, rtol=1e-5, atol=1e-5)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    experts = "model.layers.1.block_sparse_moe.experts.6"
    linear, gate = core.layers[1].feedforward.fc1_weight[6].chunk(2)
    torch.testing.assert_close(tensors[f"{experts}.w1.weight"], gate)
    torch.testing.assert_close(tensors[f"{experts}.w3.weight"], linear)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith(("-s", "-xs"))])
def test_modern_presets_are_stock(name):
    core = Decoder(preset(name).replace(num_layers=2, vocab_size=67, intermediate_size=31)).eval()
    tokens = torch.randint(67, (2, 13))
    with torch.no_grad():
        torch.testing.assert_close(to_stock(core)(tokens).logits, core(tokens).logits, rtol=1e-5, atol=1e-5)
    assert choose(preset(name)).name == "Llama"
    assert choose(of_family("small", "lsqa")).name == "Mistral"  # 6 heads do not divide 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_bias": True}, "head_bias is True, but must be False"),
        ({"final_norm": None}, "final_norm is None, but must be 'rmsnorm'"),
        ({"norm": "layernorm"}, "norm is 'layernorm', but must be 'rmsnorm'"),
        ({"gated": False}, "gated is False, but must be True"),
        ({"window": 5, "global_tokens": 2}, "global_tokens is 2, but must be 0"),
        (
            {"num_query_heads": 3, "num_kv_heads": 6},
            r"num_kv_heads is 6, but must be a divisor of num_query_heads \(3\)",
        ),
        ({"moe": True, "feedforward_bias": True}, "feedforward_bias is True, but must be False: Mixtral"),
        ({"window": 5, "qkv_bias": True}, "qkv_bias is True, but must be False: Mistral"),
        ({"attention_out_bias": True}, "attention_out_bias is True, but must be False: Mistral"),  # of width 23
    ],
)
def test_stock_names_what_is_not_exact(changes, message, checkpoint, tmp_path):
    _, folder = checkpoint(**changes)
    with pytest.raises(ConfigError, match=f"no stock architecture is exact: {message}"):
        export(folder, tmp_path / "out", "stock")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.endswith(("-s", "-xs"))])
def test_rxnns_models_are_not_stock(name):
    with pytest.raises(ConfigError, match="head_bias is True"):
        choose(preset(name))
