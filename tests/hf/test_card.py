"""The card that `save_pretrained` writes."""

import pytest
from huggingface_hub import ModelCard

from sqat.errors import ConfigError
from sqat.hf import SQATForCausalLM, SQATModel, from_decoder
from sqat.hf.core import to_transformers_config
from sqat.model_card import Known


def test_save_pretrained_writes_a_card_but_not_over_a_users_own(tiny_model, tmp_path):
    model, path = from_decoder(tiny_model()), tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    card = path.read_text()
    assert card.startswith("---\nlibrary_name: sqat\npipeline_tag: text-generation\n")
    assert "| this model | 6 | 3 |" in card
    assert "AutoTokenizer" not in card
    SQATForCausalLM.from_pretrained(tmp_path)
    for text, stays in (("mine", True), ("# Model\n\n[More Information Needed]\n", False)):
        path.write_text(text)
        model.save_pretrained(tmp_path)
        assert (path.read_text() == text) == stays


def test_what_the_user_knows_is_in_the_card(tiny_model, tmp_path):
    model = from_decoder(tiny_model())
    model.save_pretrained(tmp_path, known=Known(license="mit", datasets=("a/b",), base_model="c/d"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "license": "mit",
        "datasets": ["a/b"],
        "base_model": "c/d",
        "library_name": "sqat",
        "pipeline_tag": "text-generation",
        "tags": ["GroupedQueryAttention", "GQA"],
    }
    (tmp_path / "README.md").write_text("# Mine\n")
    model.save_pretrained(tmp_path, known=Known(license="apache-2.0"))
    assert (tmp_path / "README.md").read_text() == "---\nlicense: apache-2.0\n---\n# Mine\n"
    with pytest.raises(ConfigError, match=r"known is of type dict, but must be a sqat\.model_card\.Known"):
        model.save_pretrained(tmp_path, known={"license": "mit"})


def test_a_model_without_its_head_and_other_ranks_write_no_card(tiny_model, tiny_config, tmp_path):
    SQATModel(to_transformers_config(tiny_config())).save_pretrained(tmp_path)
    from_decoder(tiny_model()).save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()
