"""The two snippets of the original's model card, as they stand there, against a Hub."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load

ORIGINAL_CARD = Path(__file__).resolve().parents[3] / "shared" / "seed" / "sqat-mm-model-card.md"
TOKEN = "hf_secret"


def snippets():
    """Its Python code: inference, training."""
    if not ORIGINAL_CARD.is_file():
        pytest.skip(f"{ORIGINAL_CARD} is not here")
    return re.findall(r"```python\n(.*?)```", ORIGINAL_CARD.read_text(encoding="utf-8"), re.DOTALL)


def substitute(code, changes):
    for before, after in changes.items():
        assert before in code
        code = code.replace(before, after)
    return code


@pytest.fixture
def training(stories_folder):
    """The training snippet, with a data set, sizes and epochs for a test."""
    _, code = snippets()
    changes = {
        "'hf-dataset-id'": repr(str(stories_folder)),
        "batch_size = 256": "batch_size = 4",
        "epochs = 5": "epochs = 2",
        "seq_len = 1024": "seq_len = 32",
        "vocab_size = 10_000": "vocab_size = 300",
    }
    return f"YOUR_HF_TOKEN = {TOKEN!r}\n" + substitute(code, changes)


def check_uploads(hub, repo_id, saved, epochs=2):
    """Every checkpoint, each better than the last, came in a commit, and so did the final model; all as on disk."""
    repository = hub.repositories[repo_id]
    *checkpoints, final = repository.commits
    assert repository.private
    assert {commit.token for commit in repository.commits} == {TOKEN}
    assert len(checkpoints) == epochs
    for epoch, commit in enumerate(checkpoints):
        match = re.fullmatch(rf"Epoch {epoch} - Val loss (\d+\.\d{{4}})", commit.message)
        check_files(commit, saved / f"epoch_{epoch}_val_loss_{match[1]}")
    assert final.message == "Final commit message"
    check_files(final, saved / "final_model")
    return final


def check_files(commit, folder):
    assert commit.files == {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sha256"}
    assert set(commit.files) == {"README.md", "config.json", "model.safetensors"}


def test_the_snippets_with_a_failing_hub(hub, run, training, tmp_path):
    """Uploads that fail are told of, and training goes on: here the final model alone arrives."""
    inference, _ = snippets()
    hub.fail_commits = 2
    start = hub.repositories["ReactiveAI/SQAT-mm"].commits[0].files
    output = run(f"{inference}\nprint()\nprint(repr(generated))\nprint('TRAINING')\n{training}")
    written, _, output = output.partition("\nTRAINING\n")
    streamed, shown = written.rsplit("\n", 1)
    assert streamed.startswith("Example model input for text generation - print streamed response...")
    assert shown.startswith("'Example model input for text generation...")
    assert "Ġ" not in written
    before_training = hub.requests[: [method for method, *_ in hub.requests].index("POST")]
    fetched = {path.rpartition("/")[2] for _, path, _ in before_training if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}

    working = tmp_path / "working"
    final = check_uploads(hub, "somebody/your-model-id", working / "path" / "to" / "save", epochs=0)
    assert (output.count("Upload failed: "), output.count("Uploaded ")) == (2, 1)
    assert final.files["config.json"] == start["config.json"]
    before, after = (load(files["model.safetensors"]) for files in (start, final.files))
    assert any((before[name] != after[name]).any() for name in before)
    assert list((working / "tensorboard_logs").glob("events.out.tfevents.*"))
    assert re.search(r"Epoch 1: validation loss \d\.\d{4} \(real tokens\)", output)
    assert re.search(r"Epoch 1: validation accuracy .*% \(real tokens\), .*% \(padding counted, as RxNN\)", output)
    assert re.search(r"Total tokens: [\d,]+", output)
