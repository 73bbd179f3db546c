"""What a card says: what is on record, to the digit, and nothing else."""

import json
import re
from dataclasses import asdict

import pytest
import yaml
from huggingface_hub import ModelCard

from sqat.checkpoint import save_model
from sqat.cost import flops_per_token, kv_bytes_per_token, parameters
from sqat.data.batches import BatchState
from sqat.errors import ConfigError
from sqat.model_card import FORMS, Known, Origin, model_card, read_origin, with_metadata
from sqat.run_config import RunConfig
from sqat.train.state import TrainState
from sqat.uptrain_config import StudentConfig, UptrainConfig
from sqat.variants import preset

EVALUATION = {
    "step": 31,
    "loss": 2.34567,
    "perplexity": 10.4402,
    "accuracy": 0.45678,
    "bits_per_byte": 0.98765,
    "targets": 12345,
    "padded_loss": 1.11111,
    "padded_accuracy": 0.77777,
    "router_load": [],
    "router_entropy": None,
}
HUB_DATA = {"source": "roneneldan/TinyStories"}


def origin(evaluation=None, step=31, **data):
    run = RunConfig.from_dict({"model": "sqat-mm", "data": {**HUB_DATA, **data}})
    return Origin(run=run, state=TrainState(step=step, tokens=4567, evaluation=evaluation or EVALUATION))


def rows_of(card):
    """First cell -> the others, of all tables."""
    lines = [line[2:-2].split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


class TestMetadata:
    def test_only_what_is_known(self):
        assert ModelCard(model_card(preset("sqat-mm"), "sqat")).data.to_dict() == {
            "library_name": "sqat",
            "pipeline_tag": "text-generation",
            "tags": ["SparseQueryAttention", "SQA"],
        }

    def test_all_of_it(self):
        known = Known(license="mit", datasets=("roneneldan/TinyStories",), base_model="owner/base")
        text = model_card(preset("sqat-mm"), "transformers", origin=origin(), known=known, repo_id="owner/mine")
        card = ModelCard(text)
        data = card.data.to_dict()
        assert (data["license"], data["base_model"], data["library_name"]) == ("mit", "owner/base", "transformers")
        assert data["metrics"] == ["perplexity", "accuracy"]
        assert rows_of(text)["loss"][0] == "2.3457"

    @pytest.mark.parametrize(
        ("name", "kind", "tags"),
        [
            ("mha-s", "Multi-Head Attention", ["MultiHeadAttention", "MHA"]),
            ("gqa-s", "Grouped Query Attention", ["GroupedQueryAttention", "GQA"]),
            ("mqa-ref-micro", "Multi-Query Attention", ["MultiQueryAttention", "MQA"]),
            ("rsqat-mm", "Sparse Query Attention", ["SparseQueryAttention", "SQA"]),
        ],
    )
    def test_kind_of_attention(self, name, kind, tags):
        text = model_card(preset(name), "sqat")
        assert f"\n# {kind} transformer\n" in text
        assert ModelCard(text).data.tags == tags
        assert ("full attention has" in text) == (kind == "Sparse Query Attention")


class TestText:
    @pytest.mark.parametrize("form", FORMS)
    def test_no_blanks(self, form):
        text = model_card(preset("flexsqat-mm"), form, origin=origin(), repo_id="owner/mine")
        assert not re.search(r"(?i:more information|todo|tbd|placeholder|your[-_ ])|\bNone\b|\{\w*\}", text)
        yaml.safe_load(text.split("---\n")[1])

    def test_costs_are_those_of_the_cost_model(self):
        rows = rows_of(model_card(preset("sqat-mm"), "sqat"))
        for row, name in {"this model": "sqat-mm", "multi-head attention (MHA)": "mha-ref-micro"}.items():
            config = preset(name)
            sizes, flops = parameters(config), flops_per_token(config)
            heads = [str(config.num_query_heads), str(config.num_kv_heads)]
            costs = [f"{flops.total / 1e6:.2f} M", f"{flops.attention / 1e6:.2f} M", f"{kv_bytes_per_token(config):,}"]
            assert rows[row] == [*heads, f"{sizes.total:,}", f"{sizes.active:,}", *costs]

    def test_full_attention_is_not_compared_with_itself(self):
        assert "(MHA)" not in model_card(preset("mha-s"), "sqat")

    def test_results_and_their_meanings(self):
        rows = rows_of(model_card(preset("sqat-mm"), "sqat", origin=origin()))
        assert rows["loss"] == ["2.3457", "mean cross-entropy in nats per real target; padding does not count"]
        assert rows["accuracy"][0] == "45.68%"
        assert rows["loss, counting padding"][0] == "1.1111"
        assert "not comparable with the loss above" in rows["loss, counting padding"][1]

        evaluation = {**EVALUATION, "padded_loss": None, "padded_accuracy": None}  # what does not exist is left out
        assert "counting padding" not in model_card(preset("sqat-mm"), "sqat", origin=origin(evaluation))
        # Results of an earlier step are not this checkpoint's.
        text = model_card(preset("sqat-mm"), "sqat", origin=origin(step=37))
        assert "## Results" not in text
        assert "metrics" not in ModelCard(text).data.to_dict()
        assert "after 37 steps and 4,567 targets" in text

    @pytest.mark.parametrize("kind", [RunConfig, UptrainConfig])
    def test_settings_are_those_of_the_run_without_folders_of_the_machine(self, kind):
        model = "xsqat-s" if kind is RunConfig else {"path": "/home/somebody/half", "tokens": 7}
        data = {"source": "/home/somebody/text.txt", "validation": "~/more.txt", "cache_dir": "/home/somebody/cache"}
        run = kind.from_dict({"model": model, "data": data, "train": {"seed": 3, "clip_norm": None}})
        text = model_card(preset("xsqat-s"), "sqat", origin=Origin(run=run))
        assert "somebody" not in text
        read = kind.from_dict(yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]))
        shown = {"source": "PATH/text.txt", "validation": "PATH/more.txt"}
        expected = kind.from_dict({**run.to_dict(), "data": {**run.data.to_dict(), **shown, "cache_dir": None}})
        assert read.data == expected.data
        assert read.train == run.train
        assert read.model == (run.model if kind is RunConfig else StudentConfig(path="PATH/half", tokens=7))
        assert ("sqat train run.yaml" in text) == (kind is RunConfig)

    def test_without_an_origin_or_a_tokenizer_nothing_is_said_of_them(self):
        for form in ("sqat", "rxnn", "transformers", "stock"):
            text = model_card(preset("sqat-mm"), form, tokenizer=False)
            assert not any(words in text for words in ("## Results", "## Training", "okenizer"))

    @pytest.mark.parametrize("form", ["sqat", "rxnn"])
    def test_code_runs(self, form, rxnn_model, tokenizer, tmp_path, monkeypatch, capsys):
        model = rxnn_model(init="torch", vocab_size=303)
        folder = save_model(model, tmp_path / "model", layout=form)
        tokenizer.save(folder)
        monkeypatch.chdir(folder)
        code = re.findall(r"```python\n(.*?)```", model_card(model.config, form), re.DOTALL)
        assert len(code) == 2
        for block in code:
            exec(block, {})
        assert capsys.readouterr().out.strip()


class TestKnown:
    def test_a_card_that_is_there_keeps_its_text(self):
        card = "---\nlicense: mit\nmine: 7\n---\n\n# Mine\n\ntext\n"
        assert with_metadata(card, {}) == card
        changed = with_metadata(card, Known(license="apache-2.0", datasets=("a/b",)).metadata)
        assert changed.endswith("\n\n# Mine\n\ntext\n")
        assert ModelCard(changed).data.to_dict() == {"license": "apache-2.0", "mine": 7, "datasets": ["a/b"]}
        with pytest.raises(ConfigError, match=r"README.md has metadata that cannot be read"):
            with_metadata("---\n: [\n---\n", {"license": "mit"})


class TestOrigin:
    def test_of_a_folder_alone_and_of_a_runs_checkpoint(self, tiny_model, tmp_path):
        assert read_origin(save_model(tiny_model(), tmp_path / "model")) == Origin()
        run = RunConfig.from_dict({"model": asdict(tiny_model().config), "train": {"seed": 7}})
        folder = save_model(tiny_model(), tmp_path / "run" / "checkpoints" / "step-00000031")
        state = TrainState(step=31, tokens=5, data=BatchState(0, 3), evaluation=EVALUATION)
        (folder / "training.json").write_text(json.dumps({**asdict(state), "data": state.data._asdict()}))
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(run.to_dict()))
        found = read_origin(folder)
        assert (found.run, found.evaluation) == (run, EVALUATION)
