"""`sqat push` and `sqat pull`, as a user meets them, through the real client to a Hub of our own."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

import sqat
from sqat.checkpoint import load_model, save_model
from sqat.checksums import MANIFEST
from sqat.cli import main
from sqat.data.tokenizer import Tokenizer
from sqat.formats import export
from sqat.train.checkpoints import best_checkpoint
from sqat.train.state import read_state, write_evaluation

REPO = "somebody/mine"
SECRET = "hf_averysecrettoken"
HEADS = {"num_query_heads": 2, "num_kv_heads": 1, "head_dim": 10}
SIZES = {"vocab_size": 307, "hidden_size": 20, "num_layers": 1, "intermediate_size": 11, "context_length": 31, **HEADS}
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    values = {
        "model": {"preset": "sqat-xs", **SIZES},
        "data": {"source": "stories:61", "validation_limit": 11, "cache_dir": str(folder / "cache")},
        "train": {"batch_size": 5, "max_steps": 3, "precision": "float32", "tensorboard": False, "device": "cpu"},
    }
    sqat.start_run(sqat.RunConfig.from_dict(values), folder / "run").train()
    return folder / "run"


@pytest.fixture
def run_folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(autouse=True)
def place(client, tmp_path, monkeypatch):
    """A working folder, and somebody logged in."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")


@pytest.fixture
def command(monkeypatch, capsys, caplog, tmp_path):
    """`command("push", …)` gives (exit code, standard output, standard error), and the token is in none of them, nor in
    a log, nor on the disk.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sqat", *map(str, arguments)])
        with caplog.at_level("DEBUG"), pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        for text in (out, err, caplog.text):
            assert SECRET not in text
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return run


def files_of(folder):
    """All but the list of checksums, which is made anew wherever a folder is written."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_what_the_page_shows(hub, command, run_folder):
    """The lines of docs/ecosystem.md, one after the other."""
    page = (Path(__file__).parents[2] / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "sqat push" in block]
    shutil.copytree(run_folder, "runs/mine")
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "sqat":
            code, out, err = command(*words[1:], *(("--max-tokens", "3") if words[1] == "generate" else ()))
            assert (code, bool(out)) == (0, True), (line, err)
    repository = hub.repositories["me/my-model"]
    assert repository.private
    assert "license: apache-2.0" in repository.commits[-1].files["README.md"].decode()
    assert [commit.message for commit in repository.branches["with-code"]][-1] == "With its modelling code"
    assert Path("models/mine/modeling_sqat.py").is_file()


class TestRoundTrip:
    def test_a_run_comes_back_as_it_was(self, hub, command, run_folder):
        code, out, err = command("push", run_folder, REPO, "--license", "mit", "--private", "--message", "First")
        assert code == 0, err
        [commit] = hub.repositories[REPO].commits
        assert out == f"{run_folder} uploaded: {hub.url}/{REPO}/commit/{commit.oid}\n"
        assert "note: --dataset was not given" in err
        assert (commit.message, commit.token, set(commit.files)) == ("First", SECRET, MODEL_FILES)
        assert hub.repositories[REPO].private
        best = files_of(best_checkpoint(run_folder))
        assert {name: commit.files[name] for name in MODEL_FILES - {"README.md"}} == {
            name: best[name] for name in MODEL_FILES - {"README.md"}
        }

        code, out, err = command("pull", REPO)
        assert (code, out) == (0, f"{REPO} written to mine\n"), err
        assert files_of(Path("mine")) == commit.files
        prompt = ("Once upon", "--max-tokens", "5", "--seed", "3")
        assert command("generate", "mine", *prompt) == command("generate", run_folder, *prompt)

    def test_the_card_tells_of_the_run(self, hub, command, run_folder):
        command("push", run_folder, REPO, "--license", "mit", "--dataset", "a/b", "--dataset", "c/d")
        text = hub.repositories[REPO].commits[0].files["README.md"].decode()
        evaluation = read_state(best_checkpoint(run_folder)).own_evaluation
        assert f"| loss | {evaluation['loss']:.4f} |" in text
        assert "counting padding" not in text
        settings = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
        assert {name: settings["model"][name] for name in SIZES} == SIZES
        assert (settings["data"]["source"], settings["data"]["validation_limit"]) == ("stories:61", 11)
        assert (settings["train"]["batch_size"], settings["train"]["max_steps"]) == (5, 3)
        assert f"sqat pull {REPO} model" in text
        assert ModelCard(text).data.to_dict() == {
            "license": "mit",
            "datasets": ["a/b", "c/d"],
            "library_name": "sqat",
            "metrics": ["perplexity", "accuracy"],
            "pipeline_tag": "text-generation",
            "tags": ["MultiQueryAttention", "MQA"],  # 2 of 2 query heads
        }

    @pytest.mark.parametrize("form", ["transformers", "stock"])
    def test_an_export_comes_back_as_it_was(self, form, hub, command, run_folder):
        export(run_folder, "exported", form)
        code, _, err = command("push", "exported", REPO)
        assert code == 0, err
        assert command("pull", REPO, "back")[0] == 0
        assert files_of(Path("back")) == files_of(Path("exported"))
        assert ("modeling_sqat.py" in files_of(Path("back"))) == (form == "transformers")

    @pytest.mark.parametrize("form", ["transformers", "stock"])
    def test_push_can_export_first(self, form, hub, command, run_folder):
        before = files_of(run_folder)
        assert command("push", run_folder, REPO, "--to", form)[0] == 0
        assert files_of(run_folder) == before
        assert command("pull", REPO)[0] == 0
        export(run_folder, "exported", form)
        found, exported = files_of(Path("mine")), files_of(Path("exported"))
        card = found.pop("README.md").decode()
        assert exported.pop("README.md") != card
        assert found == exported
        assert f'folder = "{REPO}"' in card
        assert "(MHA)" in card  # what is known of the model is known of its export
        assert "## Training" in card

    def test_push_in_rxnns_layout(self, hub, command, tiny_model, tmp_path):
        quirks = {"tie_embeddings": False, "attention_out_bias": True, "feedforward_bias": True, "head_bias": True}
        model = tiny_model(hidden_size=60, final_norm=None, norm_eps=None, init="torch", **quirks)
        folder = save_model(model, tmp_path / "transformers")
        assert command("push", folder, REPO, "--to", "rxnn")[0] == 0
        assert command("pull", REPO)[0] == 0
        assert json.loads(Path("mine/config.json").read_text())["att_type"] == "gqa"
        tensors = load_model("mine").state_dict()
        assert all((tensors[name] == tensor).all() for name, tensor in model.state_dict().items())

    def test_sharded_weights_come_back(self, hub, command, run_folder):
        folder = best_checkpoint(run_folder)
        export(folder, "sharded", "stock")
        tensors = load_file("sharded/model.safetensors")
        Path("sharded/model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
        for name, part in parts.items():
            save_file({key: tensors[key] for key in part}, f"sharded/{name}", metadata={"format": "pt"})
        weight_map = {key: name for name, part in parts.items() for key in part}
        Path("sharded/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        assert command("push", folder, REPO)[0] == 0
        assert command("push", "sharded", REPO)[0] == 0  # after which the one file must not be there to be preferred
        assert command("pull", REPO)[0] == 0
        assert files_of(Path("mine")) == files_of(Path("sharded"))

    def test_from_python(self, hub, run_folder):
        assert sqat.push(run_folder, REPO, token="hf_other").startswith(f"{hub.url}/{REPO}/commit/")
        assert hub.repositories[REPO].commits[0].token == "hf_other"
        folder = sqat.pull(REPO, "back", token="hf_other")
        assert Tokenizer.load(folder).encode("a cat") == Tokenizer.load(best_checkpoint(run_folder)).encode("a cat")


class TestPush:
    def test_what_belongs_to_others_stays(self, hub, command, run_folder):
        hub.add(REPO, {"notes.txt": b"mine", "model-00001-of-00002.safetensors": b"old", "old/model.safetensors": b"x"})
        assert command("push", run_folder, REPO)[0] == 0
        assert set(hub.repositories[REPO].commits[-1].files) == {*MODEL_FILES, "notes.txt", "old/model.safetensors"}

    def test_a_branch_is_created_and_updated(self, hub, command, run_folder):
        hub.add(REPO, {"notes.txt": b"mine"})
        assert command("push", run_folder, REPO, "--branch", "better")[0] == 0
        assert command("push", run_folder, REPO, "--branch", "better", "--license", "mit")[0] == 0
        repository = hub.repositories[REPO]
        assert [set(commit.files) for commit in repository.commits] == [{"notes.txt"}]
        assert set(repository.branches["better"][-1].files) == {*MODEL_FILES, "notes.txt"}
        assert command("pull", REPO, "--revision", "better")[0] == 0
        assert "license: mit" in Path("mine/README.md").read_text()

    @pytest.mark.parametrize("options", [(), ("--to", "stock")])
    def test_a_users_own_card_stays(self, options, hub, command, run_folder):
        folder = best_checkpoint(run_folder)
        own = "---\nlicense: mit\n---\n\n# Mine\n"
        (folder / "README.md").write_text(own)
        assert command("push", folder, REPO, *options)[0] == 0
        assert command("push", folder, REPO, *options, "--dataset", "a/b")[0] == 0
        cards = [commit.files["README.md"].decode() for commit in hub.repositories[REPO].commits]
        assert cards == [own, "---\nlicense: mit\ndatasets:\n- a/b\n---\n\n# Mine\n"]
        assert (folder / "README.md").read_text() == own

    def test_a_card_edited_on_the_hub_stays(self, hub, command, run_folder):
        assert command("push", run_folder, REPO)[0] == 0
        written = hub.repositories[REPO].commits[-1].files["README.md"].decode()
        edited = written.replace("## Cost", "## My words\n\nIt likes cats.\n\n## Cost")
        hub.add(REPO, {"README.md": edited.encode()})
        for options in ((), ("--dataset", "a/b"), ("--branch", "new"), ("--to", "stock")):
            assert command("push", run_folder, REPO, *options)[0] == 0
            repository = hub.repositories[REPO]
            last = (repository.branches["new"] if "--branch" in options else repository.commits)[-1]
            card = last.files["README.md"].decode()
            assert "It likes cats." in card
            assert ("- a/b" in card) == (options != ())  # said once, it stays

    def test_an_unedited_card_is_renewed(self, hub, command, run_folder):
        """With new results, but what was set on the Hub's page stays."""
        assert command("push", run_folder, REPO, "--license", "mit")[0] == 0
        written = hub.repositories[REPO].commits[-1].files["README.md"].decode()
        hub.add(REPO, {"README.md": written.replace("license: mit", "license: mit\nlanguage: en").encode()})
        checkpoint = best_checkpoint(run_folder)
        state = read_state(checkpoint)
        loss = state.own_evaluation["loss"]
        state.record({**state.own_evaluation, "loss": 1.25})
        write_evaluation(checkpoint, state)
        assert command("push", run_folder, REPO)[0] == 0
        card = hub.repositories[REPO].commits[-1].files["README.md"].decode()
        assert "| loss | 1.2500 |" in card
        assert f"{loss:.4f}" not in card
        assert {"license: mit", "language: en"} <= set(card.splitlines())

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: shutil.rmtree(folder), "is neither a checkpoint (a folder with config.json) nor a run"),
            (lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'), "model_type is 'none'"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), "is damaged or truncated"),
            (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json is damaged or truncated"),
        ],
    )
    def test_what_cannot_be_loaded_is_not_uploaded(self, damage, message, hub, command, run_folder):
        folder = shutil.copytree(best_checkpoint(run_folder), "checkpoint")
        damage(Path(folder))
        code, _, err = command("push", folder, REPO)
        assert code == 1
        assert message in err
        assert REPO not in hub.repositories
        assert not hub.requests

    @pytest.mark.parametrize(
        ("to", "removed", "added", "message"),
        [
            ("stock", "model.safetensors", "pytorch_model.bin", "has no model.safetensors"),
            ("transformers", "README.md", "model.onnx", "holds GGUF or ONNX, to be uploaded as it is"),
        ],
    )
    def test_exports_that_are_not_whole_are_not_uploaded(self, to, removed, added, message, hub, command, run_folder):
        export(run_folder, "exported", to)
        Path("exported", removed).rename(Path("exported", added))
        assert message in command("push", "exported", REPO)[2]
        assert not hub.requests

    def test_the_stored_token_is_used(self, hub, command, run_folder, tmp_path, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        (tmp_path / "no_token").write_text("hf_of_a_login")
        assert command("push", run_folder, REPO)[0] == 0
        assert hub.repositories[REPO].commits[0].token == "hf_of_a_login"

    @pytest.mark.parametrize(
        ("problem", "message"),
        [
            ("nobody", "nobody is logged in to the Hub, but writing there needs a token: log in with `hf auth login`"),
            ("unknown", "Invalid credentials"),
            ("read only", "403 Forbidden"),
            ("no network", "the Hub at http://127.0.0.1:1 cannot be reached: check the network"),
            ("fails halfway", "500"),
        ],
    )
    def test_what_goes_wrong_leaves_the_hub_as_it_was(self, problem, message, hub, command, run_folder, monkeypatch):
        hub.add(REPO, {"config.json": b"old"})
        if problem == "nobody":
            monkeypatch.delenv("HF_TOKEN")
        elif problem in ("unknown", "read only"):
            (hub.unknown if problem == "unknown" else hub.read_only).add(SECRET)
        elif problem == "no network":
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        else:
            hub.fail_commits = 1
        code, _, err = command("push", run_folder, REPO)
        assert (code, message in err) == (1, True), err
        assert len(hub.repositories[REPO].commits) == 1

    def test_a_token_in_an_answer_is_hidden(self, hub, command, run_folder, monkeypatch):
        """Whoever wrote it: the command does not show it."""

        def refuse(*args, **kwargs):
            raise ValueError(f"bad header Bearer {SECRET}")

        monkeypatch.setattr("huggingface_hub.HfApi.create_commit", refuse)
        assert "bad header Bearer <token>" in command("push", run_folder, REPO)[2]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("mine",), "repository is 'mine', but must be owner/name"),
            (("a/b/c",), "repository is 'a/b/c'"),
            ((REPO, "--to", "gguf"), "to is 'gguf', but must be one of transformers, stock, rxnn, sqat"),
            ((REPO, "--to", "rxnn"), "RxNN's layout holds models with"),
        ],
    )
    def test_wrong_options_are_refused_before_any_request(self, options, message, hub, command, run_folder):
        code, _, err = command("push", run_folder, *options)
        assert (code, message in err) == (1, True), err
        assert not hub.requests


@pytest.fixture
def pushed(hub, run_folder):
    """A repository with a model, and with what is none of its own."""
    sqat.push(run_folder, REPO)
    files = hub.repositories[REPO].commits[0].files
    others = ("pytorch_model.bin", "training.safetensors", "old/model.safetensors", "a.py")
    hub.add(REPO, {**files, **dict.fromkeys(others, b"x")})
    hub.requests.clear()
    return files


class TestPull:
    def test_pull_fetches_the_model_alone(self, hub, command, pushed):
        assert command("pull", REPO, "here")[0] == 0
        assert files_of(Path("here")) == pushed
        fetched = {path.rpartition("/main/")[2] for method, path, _ in hub.requests if method == "GET"}
        assert not any(re.search(r"\.bin|training|old/|a\.py", name) for name in fetched)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "it has no config.json"),
            ({"config.json": b'{"model_type": "none"}'}, "model_type is 'none', but must be sqat, or that of a causal"),
            ({"model.safetensors": None, "pytorch_model.bin": b"a pickle"}, "has no model.safetensors"),
            ({"model.safetensors": b"truncated"}, "is damaged or truncated"),
        ],
    )
    def test_what_cannot_be_loaded_is_not_left(self, files, message, hub, command, pushed):
        changed = {name: data for name, data in {**pushed, **files}.items() if data is not None} if files else {}
        hub.add(REPO, {"notes.txt": b"", **changed})
        before = sorted(Path().iterdir())
        code, _, err = command("pull", REPO, "here")
        assert (code, f"'{REPO}' holds no model that can be used: " in err, message in err) == (1, True, True), err
        assert ".tmp" not in err
        assert sorted(Path().iterdir()) == before

    @pytest.mark.parametrize("form", ["transformers", "stock"])
    def test_code_in_a_repository_is_not_run(self, form, hub, command, run_folder):
        export(run_folder, "exported", form)
        code = f"open({str(Path.cwd() / 'ran')!r}, 'w')\n".encode()
        files = {**files_of(Path("exported")), "modeling_sqat.py": code, "configuration_sqat.py": code}
        for name in ("config.json", "tokenizer_config.json"):
            classes = {"AutoConfig", "AutoModelForCausalLM"} if name == "config.json" else {"AutoTokenizer"}
            own = {n: ["modeling_sqat.Own", None] if n == "AutoTokenizer" else "modeling_sqat.Own" for n in classes}
            values = {**json.loads(files[name]), "auto_map": own, "tokenizer_class": "Own"}
            files[name] = json.dumps(values).encode()
        hub.add(REPO, files)
        code, _, err = command("pull", REPO)
        assert code == 0 or "holds no model that can be used" in err
        assert not Path("ran").exists()

    def test_pull_needs_force_to_replace_a_model(self, command, pushed):
        Path("here").mkdir()
        assert command("pull", REPO, "here")[0] == 0  # an empty one may be there
        code, _, err = command("pull", REPO, "here")
        assert (code, "out is here, which exists and is not empty" in err) == (1, True)
        Path("here/config.json").write_text('{"model_type": "sqat"}')
        assert command("pull", REPO, "here", "--force")[0] == 0
        assert files_of(Path("here")) == pushed

    def test_force_replaces_nothing_but_models(self, command, pushed):
        Path("here").mkdir()
        Path("here/thesis.txt").write_text("mine")
        code, _, err = command("pull", REPO, "here", "--force")
        assert (code, "out is here, which exists and is not empty" in err) == (1, True)
        assert files_of(Path("here")) == {"thesis.txt": b"mine"}
        code, _, err = command("pull", REPO, "here/thesis.txt", "--force")
        assert (code, "out is here/thesis.txt, which exists and is not empty" in err) == (1, True)

    def test_a_failed_pull_leaves_the_model_that_was_there(self, hub, command, pushed):
        assert command("pull", REPO, "here")[0] == 0
        hub.add(REPO, {**pushed, "model.safetensors": b"truncated"})
        assert command("pull", REPO, "here", "--force")[0] == 1
        assert files_of(Path("here")) == pushed

    def test_a_broken_connection_leaves_nothing(self, hub, command, pushed, monkeypatch):
        def break_off(*args, **kwargs):
            raise OSError("connection reset by peer")

        monkeypatch.setattr("huggingface_hub._snapshot_download.hf_hub_download", break_off)
        before = sorted(Path().iterdir())
        code, _, err = command("pull", REPO, "here")
        assert (code, "connection reset by peer" in err) == (1, True)
        assert sorted(Path().iterdir()) == before

    @pytest.mark.parametrize("missing", ["repository", "private", "revision", "network", "token"])
    def test_why_a_pull_fails_is_said(self, missing, hub, command, pushed, monkeypatch):
        arguments, message = ("pull", REPO, "here"), "there is no such repository, or it is private: check its name"
        if missing == "repository":
            arguments = ("pull", "no/such", "here")
        elif missing == "private":
            hub.repositories[REPO].private = True
            monkeypatch.delenv("HF_TOKEN")
        elif missing == "revision":
            arguments = (*arguments, "--revision", "v9")
            message = f"'{REPO}' at 'v9' cannot be had from the Hub: it has no"
        elif missing == "token":
            hub.unknown.add(SECRET)
            message = "Invalid credentials"
        else:
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
            message = "the Hub at http://127.0.0.1:1 cannot be reached"
        code, _, err = command(*arguments)
        assert (code, message in err) == (1, True), err
        assert not Path("here").exists()
