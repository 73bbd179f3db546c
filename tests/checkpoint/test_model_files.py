"""Models on disk: back bit for bit, and refused by name where something does not fit."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqat.checkpoint import load_model, read_config, save_model, write_folder, write_model
from sqat.checksums import MANIFEST
from sqat.errors import CheckpointError, ConfigError

TOKENS = torch.tensor([[5, 1, 17, 3, 2], [0, 40, 7, 7, 11]])


def assert_same(found, expected):
    assert found.config == expected.config
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(found(TOKENS), expected.eval()(TOKENS))


@pytest.fixture
def model(tiny_model):
    return tiny_model(moe=True)


@pytest.fixture
def folder(model, tmp_path):
    """As from elsewhere: without checksums, so that what is in the files is looked at."""
    folder = save_model(model, tmp_path / "model")
    (folder / MANIFEST).unlink()
    return folder


def change_config(folder, **changes):
    """`None`: not there."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if changes.get(name, 0) is not None}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder, message):
    return pytest.raises(CheckpointError, match=re.escape(str(folder)) + ".*" + re.escape(message))


class TestRoundTrip:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("moe", [True, False])
    @pytest.mark.parametrize("biased", [True, False])
    def test_saved_models_come_back_bit_for_bit(self, tiny_model, tmp_path, tied, moe, biased):
        biases = dict.fromkeys(("qkv_bias", "attention_out_bias", "feedforward_bias", "head_bias"), biased)
        model = tiny_model(moe, tie_embeddings=tied, **biases)
        loaded = load_model(save_model(model, tmp_path / "model"))
        assert_same(loaded, model)
        assert (loaded.head.weight is loaded.embedding.weight) == tied

    def test_a_checkpoint_is_two_files_and_their_checksums(self, model, tmp_path):
        folder = save_model(model, tmp_path / "model")
        assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "config.json", "model.safetensors"]
        assert json.loads((folder / "config.json").read_text()) == {"model_type": "sqat", **model.config.to_dict()}
        assert set(load_file(folder / "model.safetensors")) == set(model.state_dict()) - {"head.weight"}

    def test_loading_leaves_the_random_generator_alone(self, folder):
        before = torch.get_rng_state()
        loaded = load_model(folder)
        assert torch.get_rng_state().equal(before)
        assert not loaded.training
        assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())

    @pytest.mark.parametrize(
        ("options", "expected"),
        [({}, torch.float32), ({"dtype": None}, torch.bfloat16), ({"dtype": torch.float64}, torch.float64)],
        ids=str,
    )
    def test_weights_keep_or_change_their_type(self, model, tmp_path, options, expected):
        folder = save_model(model.to(torch.bfloat16), tmp_path / "model")
        loaded = load_model(folder, **options)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        torch.testing.assert_close(loaded.to(torch.bfloat16).state_dict(), model.state_dict(), rtol=0, atol=0)


class TestSaving:
    def test_an_old_checkpoint_is_replaced(self, folder, tiny_model):
        other = tiny_model(num_layers=3)
        (folder / "notes.txt").write_text("of the old one")
        save_model(other, folder)
        assert_same(load_model(folder), other)
        assert not (folder / "notes.txt").exists()

    @pytest.mark.parametrize("name", [".", "file"])
    def test_only_checkpoints_are_replaced(self, model, tmp_path, name):
        (tmp_path / "file").write_text("precious")
        with refused(tmp_path, "exists and is not a checkpoint (it has no config.json)"):
            save_model(model, tmp_path / name)
        assert (tmp_path / "file").read_text() == "precious"

    def test_unknown_layouts_are_refused_and_an_empty_folder_is_filled(self, model, tmp_path):
        with pytest.raises(ConfigError, match="layout is 'gguf', but must be one of sqat, rxnn"):
            save_model(model, tmp_path / "model", layout="gguf")
        assert not any(tmp_path.iterdir())
        assert_same(load_model(save_model(model, tmp_path)), model)


class TestChecksums:
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_a_changed_file_is_refused_unless_its_checksums_are_deleted(self, model, tmp_path, name):
        folder = save_model(model, tmp_path / "model")
        if name == "config.json":
            change_config(folder, context_length=23)
        else:
            change_tensors(folder, lambda tensors: tensors["embedding.weight"].add_(1.0))
        reason = f"{name} is damaged or truncated: its SHA-256 is not the one in {MANIFEST}. Restore it"
        for message in (reason, f"or, if it was changed on purpose, delete {folder / MANIFEST}"):
            with refused(folder, message):
                load_model(folder)
        (folder / MANIFEST).unlink()
        load_model(folder)

    def test_unread_files_are_not_checked(self, model, tmp_path):
        folder = save_model(model, tmp_path / "model")
        (folder / "README.md").write_text("added")
        with write_folder(folder) as temporary:
            write_model(model, temporary)
            (temporary / "README.md").write_text("mine")
        (folder / "README.md").write_text("changed")
        assert_same(load_model(folder), model)

    def test_shards_and_their_index_are_checked(self, model, tmp_path):
        from sqat.hf.core import from_decoder

        with write_folder(tmp_path / "model") as temporary:
            from_decoder(model).save_pretrained(temporary, max_shard_size="9KB")
        assert_same(load_model(tmp_path / "model"), model)
        shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
        assert len(shards) > 2
        for name in ("model.safetensors.index.json", shards[1], shards[-1]):
            path = tmp_path / "model" / name
            content = path.read_bytes()
            path.write_bytes(content[:-3] + b" " + content[-2:])
            with refused(tmp_path, f"{name} is damaged"):
                load_model(tmp_path / "model")
            path.write_bytes(content)


class TestConfigFile:
    def test_the_layout_is_told(self, folder, model):
        assert read_config(folder) == (model.config, False)  # whether it is RxNN's

    def test_a_missing_folder_or_one_without_config_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere"):
            load_model(tmp_path / "nowhere")
        for name in ("pytorch_model.bin", "model.safetensors"):
            (tmp_path / name).write_bytes(b"")
            with refused(tmp_path, "is not a checkpoint: it has no config.json"):
                load_model(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            *((content, "config.json is not valid JSON") for content in (b"{", b"", b"\xff\xfe", b"{'a': 1}")),
            (b'{"model_type": "llama"}', "model_type is 'llama', but must be 'sqat'"),
            (b"{}", "model_type is None, but must be 'sqat'"),
            (b"[1]", "config.json is not valid JSON"),
            (b'{"embed_dim": 64}', "model_type is None, but must be 'sqat'"),
        ],
    )
    def test_other_configurations_are_refused(self, folder, content, message):
        (folder / "config.json").write_bytes(content)
        with refused(folder, message):
            load_model(folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_layers": "many"}, "config.json: ModelConfig.num_layers is 'many', but must be a whole number"),
            ({"num_kv_heads": 4}, "config.json: ModelConfig.num_kv_heads is 4, but must be a divisor"),
            ({"head_dim": None}, "field 'head_dim' is missing"),
        ],
    )
    def test_unusable_fields_are_named(self, folder, changes, message):
        change_config(folder, **changes)
        with refused(folder, message):
            load_model(folder)


NAME = "layers.1.feedforward.fc2_weight"  # (7, 23, 13)


class TestTensors:
    def test_no_safetensors_and_nothing_is_unpickled(self, folder, model):
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        with refused(folder, "has no model.safetensors"):
            load_model(folder)

    def test_truncated_weights_are_refused(self, folder):
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        for kept in (0, 1, 7, 8, 100, -1000, -1):
            path.write_bytes(whole[:kept])
            with refused(folder, "model.safetensors is damaged or truncated"):
                load_model(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop(NAME), f"model.safetensors does not fit its config.json: missing {NAME}"),
            (lambda t: t.update(extra=torch.zeros(3)), "does not fit its config.json: unexpected extra"),
            (lambda t: t.update({NAME: torch.zeros(7, 13, 23)}), f"{NAME} is (7, 13, 23), but must be (7, 23, 13)"),
            (lambda t: t.update({NAME: t[NAME].to(torch.int8)}), f"{NAME} holds torch.int8, but must hold floating"),
            (  # all problems at once
                lambda t: t.update({"extra": t.pop(NAME), "final_norm.weight": torch.zeros(22)}),
                f"missing {NAME}; unexpected extra; final_norm.weight is (22,), but must be (23,)",
            ),
        ],
        ids=["missing", "unexpected", "misshapen", "integers", "all"],
    )
    def test_tensors_that_do_not_fit_are_named(self, folder, change, message):
        change_tensors(folder, change)
        with refused(folder, message):
            load_model(folder)

    def test_long_lists_are_cut(self, folder):
        change_config(folder, num_layers=4)
        with refused(folder, "missing layers.2.norm1.weight") as caught:
            load_model(folder)
        assert re.search(r"layers\.2\.attention\.v_proj\.weight and \d+ more$", str(caught.value))
