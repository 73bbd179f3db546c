"""Wrong command lines end with an exit code and one short line, never with a traceback."""

import pytest

from sqat.cli import one_line

LONG = "9" * 5000


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # "a/b" is a name there
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n\n\xff\xfe")
    (tmp_path / "text.txt").write_text("Once upon a time.\n\nThere was a cat.")
    (tmp_path / "run.yaml").write_text("model: {preset: sqat-xs}\ndata: {source: text.txt}\n")
    (tmp_path / "taken").write_text("a file where a run's folder should be")


@pytest.mark.usefixtures("folder", "little_memory")
@pytest.mark.parametrize(
    "line",
    [
        ["info", "x" * 5000],
        ["info", "checkpoint", "--context", "-1"],
        ["generate", "checkpoint", "Once", "--temperature", "nan"],
        ["generate", "checkpoint", "Once", "--top-p", "1e400"],
        ["generate", "checkpoint", "\udcff", "--max-tokens", "2"],
        ["generate", "checkpoint", "--prompts", "latin.txt"],
        ["generate", "a/b", "Once"],
        ["convert", "checkpoint", "--out", "out", "--query-heads", "5"],
        ["export", "checkpoint", "--out", "out", "--to", "a:b:c"],
        ["evaluate", "checkpoint", "--data", "~nobody-of-this-name"],
        ["evaluate", "checkpoint", "--data", "text.txt", "--batch-size", "0"],
        ["evaluate", "checkpoint", "--data", "text.txt", "--context", "1"],
        ["tokenizer", "train", "text.txt", "--out", "taken", "--vocab-size", "262"],
        ["tokenizer", "train", "text.txt", "--out", "out", "--vocab-size", "0"],
        ["train", "run.yaml", "--out", "taken"],
        ["train", "sqat-mm", "--data", "x" * 300 + "/a.txt", "--out", "out"],
        ["train", "sqat-mm", "--set", f"train.seed={LONG}"],
        ["train", "sqat-mm", "--set", "train.seed=["],
        ["train", "sqat-mm", "--set", "model.vocab_size=1e400"],
        ["train", "sqat-zz"],
        ["uptrain", "checkpoint", "--tokens", "0", "--data", "text.txt", "--out", "out"],
        ["compare", "run.yaml", "--seeds", LONG],
        ["compare", "run.yaml", "--seeds", "0,x"],
        ["compare", "--report-only", "--out", "checkpoint"],
    ],
    ids=lambda line: " ".join(line)[:60].encode("ascii", "replace").decode(),
)
def test_what_is_wrong_is_told_in_a_line(sqat, line):
    code, _, errors = sqat(*line)
    assert code in (1, 2)  # 2: the option itself is out of range
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert len(last) < 20_000
    assert "Traceback" not in errors


def test_a_message_is_one_line_without_control_characters():
    assert one_line("a\nb\t c") == "a b c"
    assert one_line("\x1b[31mred\x07 \u202e caf\xe9 \udcff") == "\\x1b[31mred\\x07 \\u202e café \\udcff"
