"""What `from_pretrained` reads, and what is written."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPT2Config

import sqat
from sqat.checkpoint import load_model, save_model
from sqat.errors import CheckpointError, ConfigError
from sqat.formats import export
from sqat.hf import SQATForCausalLM, SQATModel, from_decoder
from sqat.hf.core import to_transformers_config
from sqat.hf.pretrained import AUTO_MAP
from sqat.sharing import check_model

from .conftest import QUIRKS


@pytest.mark.parametrize("changes", [{}, {"moe": True, **QUIRKS}, {"window": 5, "global_tokens": 2}])
def test_folders_of_this_package(changes, tiny_model, tokens, tmp_path):
    core = tiny_model(**changes)
    folder = save_model(core, tmp_path / "transformers")
    auto = AutoModelForCausalLM.from_pretrained(folder)
    assert type(auto) is SQATForCausalLM
    assert not auto.training
    expected = core(tokens).logits
    torch.testing.assert_close(auto(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert AutoConfig.from_pretrained(folder).num_query_heads == 6
    base = AutoModel.from_pretrained(folder)
    assert type(base) is SQATModel
    torch.testing.assert_close(auto.head(base(tokens).last_hidden_state), auto(tokens).logits)


@pytest.mark.parametrize("changes", [{}, QUIRKS])
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_saved_folders_are_read_by_both(shard, changes, tiny_model, tokens, tmp_path):
    model = from_decoder(tiny_model(moe=True, **changes))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "5KB")
    expected = model(tokens).logits
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, expected)
    torch.testing.assert_close(sqat.load_model(tmp_path)(tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_rxnns_layout_is_read(tiny_model, tokens, tmp_path):
    core = tiny_model(moe=True, hidden_size=60, **QUIRKS)  # RxNN: head_dim divides the width
    folder = save_model(core, tmp_path / "original", layout="rxnn")
    model = SQATForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model(tokens).logits, from_decoder(core)(tokens).logits)
    assert SQATForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert isinstance(SQATModel.from_pretrained(folder), SQATModel)


def test_rxnns_layout_with_a_config_of_ones_own(tiny_model, tokens, tmp_path):
    core = tiny_model(hidden_size=60, **QUIRKS)
    folder = save_model(core, tmp_path / "original", layout="rxnn")
    config = to_transformers_config(core.config.replace(feedforward_dropout=0.0))
    model, info = SQATForCausalLM.from_pretrained(folder, config=config, output_loading_info=True)
    assert not info["missing_keys"]
    assert model.config.feedforward_dropout == 0.0
    torch.testing.assert_close(model(tokens).logits, from_decoder(core)(tokens).logits)
    config.save_pretrained(tmp_path / "config")
    model = SQATForCausalLM.from_pretrained(folder, config=tmp_path / "config")
    torch.testing.assert_close(model(tokens).logits, from_decoder(core)(tokens).logits)
    other = to_transformers_config(core.config.replace(num_query_heads=3, rope_theta=7.0))
    with pytest.raises(ConfigError, match=r"config does not fit the tensors of .*original"):
        SQATForCausalLM.from_pretrained(folder, config=other)
    with pytest.raises(ConfigError, match="config is of type GPT2Config, but must be an SQATConfig"):
        SQATForCausalLM.from_pretrained(folder, config=GPT2Config())


def test_damage_in_rxnns_layout_is_named(tiny_model, tmp_path):
    folder = save_model(tiny_model(hidden_size=60, **QUIRKS), tmp_path / "original", layout="rxnn")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        SQATForCausalLM.from_pretrained(folder)


def test_damaged_indices_are_refused(tiny_model, tmp_path):
    from_decoder(tiny_model()).save_pretrained(tmp_path, max_shard_size="5KB")
    first = next(tmp_path.glob("*.safetensors"))
    shutil.move(first, tmp_path / "away")
    with pytest.raises(CheckpointError, match=f"has no {first.name}"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is damaged"):
        load_model(tmp_path)


def test_dtype_and_device_map_are_followed(saved, tokens):
    folder = saved(moe=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    placed = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    torch.testing.assert_close(placed(tokens).logits, plain(tokens).logits)
    low = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", attn_implementation="eager")
    assert low.config._attn_implementation == "eager"
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert (low(tokens).logits.float() - plain(tokens).logits).abs().mean() < 0.05 * plain(tokens).logits.abs().mean()


def test_a_missing_tensor_is_told_and_drawn(saved):
    from safetensors.torch import load_file, save_file

    folder = saved()
    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.1.attention.out_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = SQATForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"model.layers.1.attention.out_proj.weight"}
    assert 0.005 < model.model.layers[1].attention.out_proj.weight.std() < 0.02  # 0.02 / sqrt(2 · 2 layers)


def test_auto_classes_know_sqat_after_one_import_and_sqat_alone_does_not_import_transformers(saved):
    code = "import sys, sqat; sqat.preset('sqat-s'); assert 'transformers' not in sys.modules; import sqat.hf\n"
    code += f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(saved())!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_written_configurations_have_one_name_for_one_thing(saved, tmp_path):
    SQATForCausalLM.from_pretrained(saved()).save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    assert values["num_query_heads"] == 6
    assert "num_attention_heads" not in values


@pytest.mark.parametrize("on_the_hub", [False, True])
@pytest.mark.parametrize("kind", [SQATForCausalLM, SQATModel])
def test_what_carries_its_code_still_does_when_saved_again(kind, on_the_hub, saved, tmp_path):
    export(saved(), tmp_path / "exported", "transformers")
    model = kind.from_pretrained(tmp_path / "exported")
    if on_the_hub:  # as transformers has it of a model from there
        model.config.auto_map = {key: f"me/mine--{name}" for key, name in AUTO_MAP.items()}
    model.save_pretrained(tmp_path / "again")
    for name in ("configuration_sqat.py", "modeling_sqat.py"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    if kind is SQATForCausalLM:
        assert check_model(tmp_path / "again").form == "transformers"
        assert "trust_remote_code=True" in (tmp_path / "again" / "README.md").read_text()


def test_somebody_elses_code_is_left_alone(saved, tmp_path):
    model = SQATForCausalLM.from_pretrained(saved())
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_theirs.Theirs"}
    model.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.py"))
