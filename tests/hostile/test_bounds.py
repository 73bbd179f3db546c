"""Sizes are checked before anything of that size is allocated, and paths stay in their folder."""

import json
import re
from pathlib import Path

import pytest

from sqat.checkpoint import load_model, read_config, save_model
from sqat.config import CEILINGS
from sqat.data.text import open_source
from sqat.data.tokenizer import Tokenizer
from sqat.errors import CheckpointError, ConfigError, DataError, SqatError
from sqat.model import Decoder
from sqat.untrusted import shown
from sqat.variants import preset


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.mark.parametrize("field", CEILINGS)
def test_no_field_is_larger_than_in_any_model(checkpoint, field):
    change(checkpoint, window=5, **{field: CEILINGS[field] + 2})
    message = f"config.json: ModelConfig.{field} is {CEILINGS[field] + 2}, but must be at most {CEILINGS[field]:,}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_config(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 1 << 24, "hidden_size": 1 << 18, "tie_embeddings": False},
        {"num_layers": 4096, "num_experts": 1 << 12, "intermediate_size": 1 << 18},
    ],
    ids=["vocabulary", "experts"],
)
@pytest.mark.usefixtures("little_memory")
def test_a_model_larger_than_the_memory_is_refused(changes):
    with pytest.raises(ConfigError, match=r"[0-9] GB of weights; but this machine has"):
        Decoder(preset("sqat-mm").replace(**changes))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("layout", "experts"), [("sqat", "num_experts"), ("rxnn", "ff_num_experts")])
def test_a_config_is_compared_with_the_weights_before_a_model_is_built(tmp_path, layout, experts):
    model = Decoder(preset("sqat-mm").replace(vocab_size=41, num_layers=1, num_experts=2))
    for field, value in {"vocab_size": 1 << 24, "num_layers": 4096, experts: 1 << 12}.items():
        folder = save_model(model, tmp_path / "model", layout=layout)
        load_model(folder)
        change(folder, **{field: value})
        with pytest.raises(CheckpointError, match=r"not fit its config|but the weights beside it"):
            load_model(folder)


def test_messages_stay_short_and_a_large_or_deep_config_is_refused(checkpoint):
    change(checkpoint, vocab_size="9" * 100_000, **{"x" * 100_000: 1})
    with pytest.raises(CheckpointError) as caught:
        read_config(checkpoint)
    assert len(str(caught.value)) < 2000
    assert len(shown(["a" * 10_000] * 100)) < 700
    for text, message in ((" " * ((1 << 26) + 1), "larger than 67,108,864 bytes"), ("[" * 100_000, "nested too deep")):
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_config(checkpoint)


class TestPaths:
    @pytest.fixture
    def sharded(self, checkpoint):
        (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
        return checkpoint

    def index(self, folder, name):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    def test_an_index_leads_nowhere_else(self, sharded):
        self.index(sharded, "model-1.safetensors")
        load_model(sharded)
        elsewhere = [f"{name}.safetensors" for name in ("../x", "/etc/x", "a/../b")]
        for name in [*elsewhere, "..", "", "model.bin"]:
            self.index(sharded, name)
            with pytest.raises(CheckpointError, match=r"but must name .safetensors files of its own folder"):
                load_model(sharded)

    def test_links_of_the_hub_s_cache_work(self, sharded, tmp_path):
        snapshot, blobs = (tmp_path / "models--a--b" / part for part in ("snapshots/abc", "blobs"))
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        self.index(sharded, "model-1.safetensors")
        for path in sharded.iterdir():
            path.rename(blobs / path.name)
            (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
        load_model(snapshot)

    def test_a_link_leads_nowhere_else(self, sharded, tmp_path):
        (sharded / "model-1.safetensors").rename(tmp_path / "elsewhere.safetensors")
        (sharded / "model-1.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
        self.index(sharded, "model-1.safetensors")
        with pytest.raises(CheckpointError, match=r"is a link to .*, but a checkpoint's files must lie in its folder"):
            load_model(sharded)


@pytest.mark.parametrize(
    "spec", ["a\0b", "x" * 5000, "~nobody-of-this-name/x.txt", "stories:" + "9" * 5000, "stories:٣"]
)
def test_impossible_names_of_data(spec):
    with pytest.raises(SqatError) as caught:
        open_source(spec)
    assert len(str(caught.value)) < 12_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"].update(type="Unigram", vocab=[["a", 0.0]]), "the ids 0 to 3 are"),
        (lambda v: v.update(model=None), "damaged, or not a tokenizer"),
    ],
)
@pytest.mark.usefixtures("little_memory")
def test_unfit_tokenizers(tokenizer, tmp_path, change, message):
    path = tokenizer.save(tmp_path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=re.escape(message)):
        Tokenizer.load(path)
