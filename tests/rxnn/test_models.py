"""RxNN's model class: the original's results, arguments and files."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file

from rxnn.experimental.models import ExperimentalAttentionTransformer
from sqat.checkpoint.rxnn import DEFAULTS
from sqat.errors import ConfigError
from sqat.train.loss import router_loss

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


class TestAsTheOriginal:
    def test_logits(self, case):
        model = ExperimentalAttentionTransformer.from_pretrained(case)
        golden = load_file(case / "golden.safetensors")
        with torch.no_grad():
            logits = model(golden["input_ids"], attention_mask=golden["attention_mask"])
        torch.testing.assert_close(logits, golden["logits"], **TOLERANCE)

    def test_losses(self, case):
        model = ExperimentalAttentionTransformer.from_pretrained(case).train()
        golden = load_file(case / "golden.safetensors")
        ids = golden["input_ids"]
        output = model.model(ids)
        loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(loss[None], golden["loss_with_padding"], **TOLERANCE)
        if model.arguments["use_moe_ff"]:
            auxiliary = router_loss(output.router, "rxnn")
            torch.testing.assert_close(auxiliary[None], golden["router_aux_loss"], **TOLERANCE)
            loss = loss + 0.01 * auxiliary
        torch.testing.assert_close(loss[None], golden["total_loss"], **TOLERANCE)

    def test_files_come_back_as_they_were(self, case, tmp_path):
        ExperimentalAttentionTransformer.from_pretrained(case).save_pretrained(tmp_path / "model")
        assert (tmp_path / "model" / "config.json").read_text() == (case / "config.json").read_text()
        saved, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", case))
        torch.testing.assert_close(saved, original, rtol=0, atol=0)

    def test_defaults(self):
        parameters = inspect.signature(ExperimentalAttentionTransformer).parameters
        assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS


class TestArguments:
    def test_all_are_saved(self, small_model, tmp_path):
        small_model().save_pretrained(tmp_path / "model")
        saved = json.loads((tmp_path / "model" / "config.json").read_text())
        parameters = inspect.signature(ExperimentalAttentionTransformer).parameters
        assert list(saved) == sorted(set(parameters) - {"kwargs"})
        assert saved["use_flash_attention"] is True

    def test_come_back(self, small_model, tmp_path):
        model = small_model(use_head_norm=True)
        assert isinstance(model, PyTorchModelHubMixin)
        model.save_pretrained(tmp_path / "model")
        loaded = ExperimentalAttentionTransformer.from_pretrained(tmp_path / "model")
        assert loaded.arguments == model.arguments
        assert loaded.arguments["use_head_norm"] is True
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)

    def test_positional_in_rxnns_order(self):
        arguments = ExperimentalAttentionTransformer(1, 41, 24, 13, 4, 19, att_type="mha").arguments
        names = ("num_layers", "vocab_size", "embed_dim", "ff_dim", "att_heads", "seq_len")
        assert [arguments[name] for name in names] == [1, 41, 24, 13, 4, 19]

    @pytest.mark.parametrize("arguments", [{}, {"att_type": "gma"}, {"att_type": "flex"}, {"embed_dims": 24}])
    def test_unsupported_or_unknown(self, arguments):
        message = r"att_type is '(gma|flex)', but must be one of mha, gqa, mqa, sqa|unknown key 'embed_dims'"
        with pytest.raises(ConfigError, match=message):
            ExperimentalAttentionTransformer(**arguments)

    def test_replaced_when_loading(self, small_model, tmp_path):
        small_model(ff_dropout=0.1).save_pretrained(tmp_path / "model")
        model = ExperimentalAttentionTransformer.from_pretrained(tmp_path / "model", ff_dropout=0.0)
        assert model.model.config.feedforward_dropout == 0
        with pytest.raises(RuntimeError, match=r"size mismatch for embedding\.weight"):
            ExperimentalAttentionTransformer.from_pretrained(tmp_path / "model", vocab_size=311)


class TestFiles:
    def test_loads_in_evaluation_mode_and_leaves_the_generator_alone(self, small_model, tmp_path):
        small_model().save_pretrained(tmp_path / "model")
        before = torch.get_rng_state()
        model = ExperimentalAttentionTransformer.from_pretrained(str(tmp_path / "model"))
        assert not model.training
        assert torch.equal(torch.get_rng_state(), before)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_card(self, small_model, tmp_path):
        small_model(moe=True).save_pretrained(tmp_path / "model")
        card = (tmp_path / "model" / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: sqat\npipeline_tag: text-generation\n")  # nobody named a license
        assert "sqa: 2 query heads, 1 key/value heads (full attention would have 4)" in card
        assert "5 experts, 2 per token" in card
        kwargs = {"license": "mit", "datasets": "roneneldan/TinyStories"}
        small_model().save_pretrained(tmp_path / "known", model_card_kwargs=kwargs)
        card = (tmp_path / "known" / "README.md").read_text()
        assert card.startswith("---\ndatasets:\n- roneneldan/TinyStories\nlibrary_name: sqat\nlicense: mit\n")

    def test_other_files_stay(self, small_model, tmp_path):
        for name in ("README.md", "tokenizer.json", "model.safetensors"):
            (tmp_path / name).write_text("mine")
        (tmp_path / "folder").mkdir()
        small_model().save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == (tmp_path / "tokenizer.json").read_text() == "mine"
        names = {"README.md", "config.json", "folder", "model.safetensors", "tokenizer.json"}
        assert {path.name for path in tmp_path.iterdir()} == names
        ExperimentalAttentionTransformer.from_pretrained(tmp_path)
