"""Files from a Hub and folders to it, through the real client."""

import pytest

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.tokenizer import load_tokenizer_from_hf_hub
from sqat.errors import CheckpointError
from sqat.hub import download, upload

MODEL = "ReactiveAI/SQAT-mm"


pytestmark = pytest.mark.usefixtures("client")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "below" / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


class TestDownload:
    def test_downloads_are_cached_for_use_offline(self, hub, tmp_path):
        ExperimentalAttentionTransformer.from_pretrained(MODEL, cache_dir=tmp_path / "own")
        seen = len(hub.requests)
        ExperimentalAttentionTransformer.from_pretrained(MODEL, cache_dir=tmp_path / "own", local_files_only=True)
        assert len(hub.requests) == seen
        with pytest.raises(CheckpointError, match=r"is no local folder, and cannot be had from the Hub"):
            ExperimentalAttentionTransformer.from_pretrained(MODEL, cache_dir=tmp_path / "other", local_files_only=True)

    def test_a_revision_can_be_named(self, hub):
        commits = hub.repositories[MODEL].commits
        commits.append(type(commits[0])("broken", [], {**commits[0].files, "config.json": b"{"}, None))
        with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
            ExperimentalAttentionTransformer.from_pretrained(MODEL)
        ExperimentalAttentionTransformer.from_pretrained(MODEL, revision=commits[0].oid)

    def test_private_repositories_need_a_token(self, hub):
        hub.repositories[MODEL].private = True
        with pytest.raises(CheckpointError, match=r"is no local folder, and cannot be had"):
            ExperimentalAttentionTransformer.from_pretrained(MODEL, token=False)
        ExperimentalAttentionTransformer.from_pretrained(MODEL, token="hf_x")
        load_tokenizer_from_hf_hub(MODEL, token="hf_x")
        assert hub.requests[-1][2] == "hf_x"

    def test_nothing_is_unpickled(self, hub):
        files = hub.repositories[MODEL].commits[0].files
        files["pytorch_model.bin"] = files.pop("model.safetensors")
        with pytest.raises(CheckpointError, match=r"has no model.safetensors"):
            ExperimentalAttentionTransformer.from_pretrained(MODEL)
        assert not any("pytorch_model.bin" in path for _, path, _ in hub.requests)

    @pytest.mark.parametrize("repo_id", ["no/such", "not an id"])
    def test_what_is_missing_is_named(self, repo_id):
        with pytest.raises(CheckpointError, match=f"'{repo_id}' is no local folder, and cannot be had"):
            download(repo_id, ["config.json"])


class TestUpload:
    def test_an_upload_is_one_commit(self, hub, folder):
        address = upload(folder, "somebody/new", "All of it", private=True, token="hf_x")
        repository = hub.repositories["somebody/new"]
        [commit] = repository.commits
        assert repository.private
        assert (commit.message, commit.token) == ("All of it", "hf_x")
        assert commit.files == {"config.json": b"{}", "below/model.safetensors": bytes(range(256))}
        assert address == f"{hub.url}/somebody/new/commit/{commit.oid}"

    def test_a_model_is_pushed_also_as_it_is_saved(self, hub, tmp_path):
        model = ExperimentalAttentionTransformer.from_pretrained(MODEL)
        model.push_to_hub("somebody/copy", private=True, token="hf_x", commit_message="Copied")
        [commit] = hub.repositories["somebody/copy"].commits
        original = hub.repositories[MODEL].commits[0].files
        assert commit.message == "Copied"
        assert commit.files == {name: original[name] for name in ("README.md", "config.json", "model.safetensors")}
        address = model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="somebody/copy", token="hf_x")
        assert address.startswith(f"{hub.url}/somebody/copy/commit/")
        assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_transformers_classes(hub, run):
    """They read Hub ids, and upload with a card, in place of the one full of blanks that transformers makes; one that
    somebody has filled in stays.
    """
    for name in ("filled", "kept"):
        hub.add(f"somebody/{name}", {"README.md": b"# Filled in\n"})
    out = run(
        """
import torch
from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.tokenizer import load_tokenizer_from_hf_hub
from sqat.hf import SQATForCausalLM
from sqat.model_card import Known

ours = SQATForCausalLM.from_pretrained("ReactiveAI/SQAT-mm")
card = ExperimentalAttentionTransformer.from_pretrained("ReactiveAI/SQAT-mm").eval()
tokens = torch.randint(4, 300, (2, 9))
print(torch.allclose(ours(tokens).logits, card(tokens), atol=1e-5), ours.config.num_query_heads)
try:
    SQATForCausalLM.from_pretrained("ReactiveAI/nothing")
except OSError as error:
    print("nothing" in str(error))

known = Known(license="mit")
ours.push_to_hub("somebody/pushed", token="hf_x", private=True, tags=["stories"], known=known)
ours.save_pretrained("saved", push_to_hub=True, repo_id="somebody/saved", token="hf_x", known=known)
ours.push_to_hub("somebody/filled", token="hf_x", known=known)
ours.push_to_hub("somebody/kept", token="hf_x")
"""
    )
    assert out.split() == ["True", "2", "True"]
    for name in ("pushed", "saved"):
        [commit] = hub.repositories[f"somebody/{name}"].commits
        card = commit.files["README.md"].decode()
        assert {"license: mit", "library_name: sqat"} <= set(card.splitlines())
        assert f"# {name}\n" in card
        assert f"sqat pull somebody/{name} model" in card
        assert ("- stories\n" in card) == (name == "pushed")
        assert "| this model | 2 | 1 |" in card
        assert "More Information" not in card
        assert "model.safetensors" in commit.files
    filled, kept = (hub.repositories[f"somebody/{name}"].commits[-1].files["README.md"] for name in ("filled", "kept"))
    assert filled == b"---\nlicense: mit\n---\n# Filled in\n"
    assert kept.endswith(b"# Filled in\n")
    assert b"license" not in kept
