"""Sizes are checked before anything of that size is allocated, and paths stay in their folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import bounded, little_memory
from safetensors.torch import save_file

from sqat.checkpoint import load_model, read_config, save_model
from sqat.checkpoint.rxnn import config_from_rxnn, config_to_rxnn
from sqat.checksums import MANIFEST
from sqat.config import CEILINGS, ModelConfig, convert
from sqat.data.text import open_source
from sqat.data.tokenizer import Tokenizer
from sqat.errors import CheckpointError, ConfigError, DataError, SqatError
from sqat.model import Decoder
from sqat.run_config import RunConfig, with_overrides
from sqat.train.state import STATE_FILE, TENSORS_FILE, TrainState, restore, state_tensors, write_state
from sqat.untrusted import parse_json, shown
from sqat.variants import preset

MEGABYTE = 1 << 20


def change(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


class TestSizes:
    @pytest.mark.parametrize("field", CEILINGS)
    def test_no_field_is_beyond_all_models(self, checkpoint: Path, field: str) -> None:
        change(checkpoint, window=5, **{field: CEILINGS[field] + 2})
        message = f"config.json: ModelConfig.{field} is {CEILINGS[field] + 2}, but must be at most {CEILINGS[field]:,}"
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read_config(checkpoint)

    @pytest.mark.parametrize("value", [10**400, 1e999, float("nan"), "1e999", -(10**30)])
    def test_numbers_that_are_none(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"vocab_size is .*, but must be (int|at (most|least) -?9,223)"):
            ModelConfig.from_dict({**preset("sqat-mm").to_dict(), "vocab_size": value})
        if value != -(10**30):
            with pytest.raises(ConfigError, match=r"rope_theta is .*, but must be float"):
                ModelConfig.from_dict({**preset("sqat-mm").to_dict(), "rope_theta": value})

    def test_truth_values_are_no_numbers(self) -> None:
        with pytest.raises(ConfigError, match="num_layers is True, but must be int"):
            ModelConfig.from_dict({**preset("sqat-mm").to_dict(), "num_layers": True})
        with pytest.raises(ConfigError, match="att_heads is True, but must be a positive integer"):
            config_from_rxnn({**config_to_rxnn(preset("sqat-mm")), "att_heads": True})

    def test_a_petabyte_is_refused_by_name_before_training(self) -> None:
        config = preset("sqat-s").replace(vocab_size=1 << 24, hidden_size=1 << 20, tie_embeddings=False)
        with (
            little_memory(),
            pytest.raises(ConfigError, match=r"141 TB of weights, most of it by vocab_size 16,777,216"),
        ):
            Decoder(config)
        experts = preset("sqat-mm").replace(num_layers=4096, num_experts=1 << 14, intermediate_size=1 << 22)
        with (
            little_memory(),
            pytest.raises(ConfigError, match=r"435 PB of weights, most of it by .*num_experts 16,384"),
        ):
            Decoder(experts)

    @pytest.mark.parametrize("layout", ["sqat", "rxnn"])
    def test_a_checkpoint_s_config_is_held_to_its_weights(self, tmp_path: Path, layout: str) -> None:
        """Nothing of the configuration's size is made: not even the layers' names."""
        model = Decoder(preset("sqat-mm").replace(vocab_size=41, num_layers=1, num_experts=2))
        folder = save_model(model, tmp_path / "model", layout=layout)
        names = {
            "sqat": ("vocab_size", "num_layers", "num_experts"),
            "rxnn": ("vocab_size", "num_layers", "ff_num_experts"),
        }
        text = (folder / "config.json").read_text()
        for field, value in zip(names[layout], (1 << 24, 4096, 1 << 14), strict=True):
            change(folder, **{field: value})
            with (
                little_memory(),
                pytest.raises(CheckpointError, match=r"does not fit its config|but the weights beside it"),
            ):
                load_model(folder)
            (folder / "config.json").write_text(text)
        load_model(folder)

    def test_messages_stay_short(self, checkpoint: Path) -> None:
        change(checkpoint, vocab_size="9" * 100_000, **{"x" * 100_000: 1})
        with pytest.raises(CheckpointError) as caught:
            read_config(checkpoint)
        assert len(str(caught.value)) < 2000
        assert len(shown([[["a" * 10_000] * 100] * 100] * 100)) < 700
        assert shown(10**5000) == "a int too large to show"


class TestJson:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[" * 100_000, "nested too deep"),
            ('{"a": NaN}', "NaN is not a number in JSON"),
            ("1" * 5000, "4300 digits"),
            ('{"a": ', "Expecting value"),
        ],
    )
    def test_json(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_json(text)

    def test_a_large_config_is_not_parsed(self, checkpoint: Path) -> None:
        (checkpoint / "config.json").write_text(" " * (MEGABYTE + 1))
        with pytest.raises(CheckpointError, match="larger than 1,048,576 bytes"):
            read_config(checkpoint)

    def test_overrides_of_many_digits(self) -> None:
        with pytest.raises(ConfigError, match=r"override 'train.seed=999.*the value is not valid YAML"):
            with_overrides({}, [f"train.seed={'9' * 5000}"])
        with pytest.raises(ConfigError, match="seed is 9223372036854775808, but must be at most"):
            RunConfig.from_dict(with_overrides({"model": "sqat-mm"}, [f"train.seed={2**63}"]))
        with pytest.raises(ConfigError, match="device is 'cuda:x', but must be auto, cpu"):
            RunConfig.from_dict(with_overrides({"model": "sqat-mm"}, ["train.device=cuda:x"]))
        assert convert("2e-3", float, "x") == 2e-3


class TestPaths:
    @pytest.fixture
    def sharded(self, checkpoint: Path) -> Path:
        (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
        return checkpoint

    def index(self, folder: Path, name: str) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    def test_a_shard_of_the_folder(self, sharded: Path) -> None:
        self.index(sharded, "model-1.safetensors")
        load_model(sharded)

    @pytest.mark.parametrize(
        "name",
        [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/../b.safetensors",
            "..",
            "",
            "model.bin",
            "a\\b.safetensors",
            "a\0.safetensors",
            "é" * 125 + ".safetensors",
        ],
    )
    def test_an_index_leads_nowhere_else(self, sharded: Path, name: str) -> None:
        self.index(sharded, name)
        with pytest.raises(CheckpointError, match=r"but must name .safetensors files of its own folder"):
            load_model(sharded)

    def test_a_linked_shard(self, sharded: Path, tmp_path: Path) -> None:
        (sharded / "model-1.safetensors").rename(tmp_path / "elsewhere.safetensors")
        (sharded / "model-1.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
        self.index(sharded, "model-1.safetensors")
        with pytest.raises(CheckpointError, match=r"is a link to .*, but a checkpoint's files must lie in its folder"):
            load_model(sharded)

    def test_links_of_the_hub_s_cache_work(self, sharded: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
        blobs = tmp_path / "models--a--b" / "blobs"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        self.index(sharded, "model-1.safetensors")
        for path in sharded.iterdir():
            path.rename(blobs / path.name)
            (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
        load_model(snapshot)

    @pytest.mark.parametrize(
        "name", ["config.json", "model.safetensors", "tokenizer.json", STATE_FILE, TENSORS_FILE, MANIFEST]
    )
    def test_devices_and_pipes_are_not_read(self, checkpoint: Path, name: str) -> None:
        optimizer = torch.optim.AdamW(load_model(checkpoint).parameters())
        write_state(checkpoint, TrainState(), state_tensors(optimizer, {}))
        (checkpoint / name).unlink(missing_ok=True)
        for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo):
            make(checkpoint / name)
            with little_memory(), bounded():
                load_model(checkpoint)
                Tokenizer.load(checkpoint)
                restore(checkpoint, optimizer)
                pytest.fail(f"{name} was read from a device or pipe")
            (checkpoint / name).unlink()

    def test_the_same_tensor_in_two_shards(self, sharded: Path) -> None:
        weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        save_file({"embedding.weight": torch.zeros(3, 2)}, sharded / "model-2.safetensors")
        with pytest.raises(
            CheckpointError, match=r"holds 'embedding.weight', which another file of the checkpoint holds"
        ):
            load_model(sharded)


@pytest.mark.parametrize(
    "spec", ["a\0b", "x" * 5000, "~nobody-of-this-name/x.txt", "stories:" + "9" * 5000, "stories:٣"]
)
def test_impossible_names_of_data(spec: str) -> None:
    with pytest.raises(SqatError) as caught:
        open_source(spec)
    assert len(str(caught.value)) < 12_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"]["vocab"].update(cat=2**32 - 1), "is 4294967295, but must be a whole number"),
        (lambda v: v["added_tokens"].append({"id": 2**31, "content": "x"}), "is 2147483648, but must be a whole"),
        (lambda v: v["model"]["vocab"].update({"\u4e2d": 300}), "which stands for no byte"),
        (lambda v: v["model"].update(continuing_subword_prefix="é"), "continuing_subword_prefix is 'é', but must be"),
        (lambda v: v["model"]["merges"].append(["a", "zzz"]), "damaged, or not a tokenizer"),
        (lambda v: v["model"].update(dropout=0.5), "dropout is 0.5, but must be null"),
        (lambda v: v["model"].update(type="Unigram", vocab=[["a", 0.0]]), "its model is 'Unigram', but must be 'BPE'"),
        (lambda v: v.update(model=None), "damaged, or not a tokenizer"),
    ],
)
def test_unfit_tokenizers(tokenizer: Tokenizer, tmp_path: Path, change: Any, message: str) -> None:
    path = tokenizer.save(tmp_path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with little_memory(), pytest.raises(DataError, match=re.escape(message)):
        Tokenizer.load(path)
