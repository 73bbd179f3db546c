"""Checkpoints whose layers differ in their heads: what is converted alone changes, and any transformers runs them."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForCausalLM

from sqat.convert import choose_heads, convert, plan_conversion, verify
from sqat.convert.architectures import MIXED_TYPES, attention_layers
from sqat.convert.files import quiet, read_config, read_model
from sqat.convert.modeling_mixed_heads import CLASSES, STOCK
from sqat.errors import ConfigError


def by_hand(model, result, heads):
    """The original with all its heads, those of a group made alike: they then add what the one of the result adds."""
    twin = AutoModelForCausalLM.from_config(model.config)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for attention, merged, layer in zip(attention_layers(twin), attention_layers(result), heads, strict=True):
            for name, old in merged.named_parameters():
                if "_norm" in name:
                    continue
                new = attention.get_parameter(name)
                if name == "o_proj.weight":
                    columns = new.unflatten(1, (-1, 10))
                    for i, group in enumerate(layer.groups):
                        columns[:, list(group)] = old.unflatten(1, (-1, 10))[:, i : i + 1] / len(group)
                elif name.startswith("q_proj"):
                    for i, group in enumerate(layer.groups):
                        new.unflatten(0, (-1, 10))[list(group)] = old.unflatten(0, (-1, 10))[i]
                elif name != "o_proj.bias":
                    heads = old.unflatten(0, (-1, 10))
                    new.copy_(heads.repeat_interleave(4 // len(heads), dim=0).flatten(0, 1))
    return twin.eval()


@pytest.mark.parametrize("name", MIXED_TYPES)
def test_one_layer_is_converted_and_the_others_stay(name, stock_model, rows):
    model = stock_model(name)
    plan = plan_conversion(
        model.config, query_heads=5, kv_heads=1, method="cluster", score="norm", layers="1-1", to="transformers"
    )
    heads = choose_heads(model, plan)
    assert [len(layer.groups) for layer in heads] == [12, 5, 12]
    result = convert(model, plan, heads=heads)
    before = model.state_dict()
    assert {tensor_name.split(".")[2] for tensor_name in plan.shapes} == {"1"}
    for tensor_name, tensor in result.state_dict().items():
        assert tensor_name in plan.shapes or torch.equal(tensor, before[tensor_name])
    assert plan.after.parameters == sum(p.numel() for p in result.parameters())
    assert plan.after.kv_bytes_per_token == (4 + 1 + 4) * 2 * 10 * 2
    torch.testing.assert_close(result(rows).logits, by_hand(model, result, heads)(rows).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXED_TYPES)
def test_written_checkpoints_are_read_and_generate(name, converted, rows):
    result, out = converted(name, query_heads=4, layers="0-1", to="transformers", method="mean")
    values = json.loads((out / "config.json").read_text())
    assert (values["model_type"], values["query_heads_per_layer"]) == (f"mixed_heads_{name}", [4, 4, 12])
    assert json.loads((out / "conversion.json").read_text())["layers"] == [0, 1]
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(loaded) is CLASSES[f"mixed_heads_{name}"][2]
    torch.testing.assert_close(loaded(rows).logits, result(rows).logits)
    base = AutoModel.from_pretrained(out)
    torch.testing.assert_close(base(rows).last_hidden_state, loaded.model(rows).last_hidden_state)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = loaded.generate(rows[:2], use_cache=False, **options)
    assert torch.equal(loaded.generate(rows[:2], **options), expected)
    static = loaded.generate(rows[:2], cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, expected)


def test_back_ends_are_chosen_for_the_whole_model(stock_model, rows):
    model = stock_model("qwen3_moe")
    plan = plan_conversion(model.config, query_heads=6, layers="1-2", to="transformers", method="mean")
    result = convert(model, plan)
    expected = result(rows).logits
    assert result.get_experts_implementation()[""] == model.get_experts_implementation()[""] == "grouped_mm"
    result.set_attn_implementation("eager")
    result.set_experts_implementation("eager")
    output = result(rows, output_attentions=True)
    assert [attention.shape[1] for attention in output.attentions] == [12, 6, 6]
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_new_models_are_initialised_as_stock_ones(stock_config):
    config = stock_config("llama", attention_bias=False, hidden_size=240, initializer_range=0.3)
    plan = plan_conversion(config, query_heads=4, layers="1-1", to="transformers", method="mean")
    for auto in (AutoModel, AutoModelForCausalLM):
        for attention in attention_layers(auto.from_config(plan.new_config)):
            assert attention.q_proj.weight.std().item() == pytest.approx(0.3, rel=0.1)


def test_a_mixed_model_is_verified_trained_on_and_saved_again(stock_folder, rows, tmp_path):
    folder = stock_folder("qwen3")
    model = read_model(folder)
    plan = plan_conversion(model.config, query_heads=4, layers="2-2", to="transformers", method="mean")
    result = convert(model, plan)
    figures = verify(model, result, rows)
    assert figures.similarity[0] == pytest.approx(1, abs=1e-5)
    assert figures.similarity[1] == pytest.approx(1, abs=1e-5)
    assert figures.similarity[2] < 0.9999
    with quiet():
        result.save_pretrained(tmp_path / "once")
        again = read_model(tmp_path / "once")
        again.save_pretrained(tmp_path / "twice")
    torch.testing.assert_close(read_model(tmp_path / "twice")(rows).logits, result(rows).logits)
    for name in ("once", "twice"):
        assert (tmp_path / name / "modeling_mixed_heads.py").is_file()
        assert set(json.loads((tmp_path / name / "config.json").read_text())["auto_map"]) == {
            *("AutoConfig", "AutoModel", "AutoModelForCausalLM")
        }
    with pytest.raises(ConfigError, match="model_type is 'mixed_heads_qwen3', but must be that of a causal"):
        plan_conversion(read_config(tmp_path / "once"), query_heads=2)


LOAD = """
import json, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
base = AutoModel.from_pretrained(".", trust_remote_code=True)
tokens = torch.arange(4, 21).unsqueeze(0)
inputs = AutoTokenizer.from_pretrained(".", trust_remote_code=True)("The cat", return_tensors="pt")
print(json.dumps({
    "class": type(model).__name__, "base": type(base).__name__, "module": type(model).__module__,
    "logits": model(tokens).logits[0].tolist(),
    "heads": [layer.self_attn.q_proj.out_features // 10 for layer in base.layers],
    "written": model.generate(**inputs, max_new_tokens=5, do_sample=False).shape[1] - inputs["input_ids"].shape[1],
}))
"""


@pytest.mark.slow
def test_it_runs_without_sqat(converted, without_sqat):
    result, out = converted("qwen3", query_heads=4, layers="1-1", to="transformers", method="mean")
    found = without_sqat(LOAD, out)
    assert (found["class"], found["base"]) == ("MixedHeadsQwen3ForCausalLM", "MixedHeadsQwen3Model")
    assert str(found["module"]).startswith("transformers_modules.")
    assert (found["heads"], found["written"]) == ([12, 4, 12], 5)
    expected = result(torch.arange(4, 21).unsqueeze(0)).logits[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_heads_per_layer": [4, 4]}, "query_heads_per_layer has 2 entries, but must have 3, one a layer"),
        ({"query_heads_per_layer": [4, 4, 5]}, "layer 2 has 5 query and 4 key/value heads, but must have a multiple"),
        ({"kv_heads_per_layer": [0, 4, 4]}, "layer 0 has 12 query and 0 key/value heads, but must have a multiple"),
    ],
)
def test_unusable_configurations(changes, message, stock_config):
    values = stock_config("llama").to_dict()
    del values["model_type"]
    with pytest.raises(StrictDataclassError, match=message):
        CLASSES["mixed_heads_llama"][0](**{**values, **changes})


def test_all_that_can_be_converted_can_be_mixed():
    assert tuple(STOCK) == MIXED_TYPES
