"""Changed command lines end with an exit code and one line, never with a traceback."""

import functools
import io
import logging
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import typer.main
from fuzzing import bounded, fuzz, little_memory
from hypothesis import given
from hypothesis import strategies as st

from sqat.cli import main, one_line

# Commands that work. What they are changed to is quick (numbers are small or unusable) and writes to no other folder.
COMMANDS = [
    ["info", "checkpoint", "--context", "7"],
    ["info", "sqat-mm"],
    ["generate", "checkpoint", "Once", "--max-tokens", "2", "--temperature", "0.5", "--top-k", "3", "--top-p", "0.9"],
    ["generate", "checkpoint", "--prompts", "prompts.txt", "-n", "2", "--max-tokens", "2", "--seed", "1", "--json"],
    ["generate", "checkpoint", "a", "--max-tokens", "2", "--min-p", "0.1", "--stop", "b", "--tokenizer", "checkpoint"],
    ["convert", "checkpoint", "--out", "out", "--layout", "sqat"],
    ["convert", "checkpoint", "--out", "out", "--query-heads", "2", "--method", "select", "--score", "norm"],
    ["export", "checkpoint", "--out", "out", "--to", "transformers"],
    ["evaluate", "checkpoint", "--data", "text.txt", "--limit", "1", "--batch-size", "2", "--context", "7", "--json"],
    ["tokenizer", "encode", "checkpoint", "some text"],
    ["tokenizer", "train", "text.txt", "--out", "out", "--vocab-size", "262", "--limit", "2"],
    ["train", "run.yaml", "--out", "taken", "--set", "train.seed=1", "--lr", "0.1", "--steps", "1"],
    ["uptrain", "checkpoint", "--tokens", "5", "--data", "text.txt", "--out", "out", "--batch-size", "2"],
    ["compare", "run.yaml", "--out", "out", "--seeds", "0,1", "--match", "tokens"],
    ["compare", "--report-only", "--out", "checkpoint"],
]
WORDS = [
    *("", "0", "-1", "1e400", "nan", "-0.5", "9" * 40, "9" * 5000, "1_000", "true", "None", "x" * 5000, "%s", "a:b:c"),
    *(".", "..", "/dev/null", "~nobody-of-this-name", "./missing", "checkpoint", "text.txt", "run.yaml", "latin.txt"),
    *("a=b", "train.seed=[", "model.vocab_size=1e400", "stories:0", "model=sqat-zz", "sqat-mm", "a/b", "0-99", "0,x"),
    *("--", "--help", "--no-such-option", "-n", "--json", "\udcff", "\x1b[31m\n", "checkpoint/config.json", "readonly"),
]


@st.composite
def command_lines(draw):
    line = list(draw(st.sampled_from(COMMANDS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(1, len(line) - 1))
        kind = draw(st.sampled_from(("set", "set", "set", "insert", "remove", "join")))
        word = draw(st.sampled_from(WORDS))
        if kind == "set":
            line[at] = word
        elif kind == "insert":
            line.insert(at, word)
        elif kind == "remove" and len(line) > 2:
            del line[at]
        else:
            line[at] = f"{line[at]}={word}"
    return line


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # "a/b" is a name there
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "text.txt").write_text("Once upon a time.\n\nThere was a cat.")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n\n\xff\xfe")
    (tmp_path / "prompts.txt").write_text("Once\nThere\n")
    (tmp_path / "run.yaml").write_text("model: {preset: sqat-xs}\ndata: {source: text.txt}\n")
    (tmp_path / "taken").write_text("a file where a run's folder should be")
    (tmp_path / "readonly").mkdir(mode=0o500)
    return tmp_path


def run(line):
    """Exit code and standard error of a command in this process."""
    out, errors = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sqat", *line])
        patch.setattr(sys, "stdin", io.StringIO(""))
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    return code, errors.getvalue()


def test_command_lines(folder, monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # once a process, and bound to one stream
    monkeypatch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))  # six times faster

    kept = {path.name for path in folder.iterdir()} | {"cache"}
    for line in COMMANDS[:5]:  # without bounds, since the first time compiles
        assert run(line)[0] == 0

    @fuzz(40)
    @given(command_lines())
    def check(line):
        os.chdir(folder)
        with bounded():
            code, errors = run(line)
            assert code in (0, 1, 2)
            assert "Traceback" not in errors
            if code == 1:  # 2 is a usage error, which comes with the way to help
                said = [text for text in errors.splitlines() if text.startswith("error: ")]
                assert len(said) == 1
                assert len(said[0]) < 20_000
        for path in [path for path in folder.iterdir() if path.name not in kept]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    with little_memory():
        check()


def test_a_message_is_one_line_without_control_characters():
    assert one_line("a\nb\t c") == "a b c"
    assert one_line("\x1b[31mred\x07 \u202e caf\xe9 \udcff") == "\\x1b[31mred\\x07 \\u202e café \\udcff"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train", "sqat-mm", "--data", "x" * 300 + "/a.txt", "--out", "out"], "error: 'xxx"),
        (["info", "x" * 5000], "error: "),
        (["tokenizer", "train", "text.txt", "--out", "taken", "--vocab-size", "262"], "error: "),
        (["train", "sqat-mm", "--set", "train.seed=" + "9" * 5000], "error: override 'train.seed=9999"),
        (["compare", "run.yaml", "--seeds", "9" * 5000], "error: override 'seeds=[9999"),
    ],
)
def test_what_the_system_refuses(folder, line, message):
    code, errors = run(line)
    assert code == 1
    assert errors.startswith(message)
    assert errors.count("\n") == 1
