"""The command line as a user meets it; commands run in a process of their own where that matters, else in this one."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sqat as sqat_package
from sqat.cli.console import tokenising
from sqat.cli.demo import DEMO
from sqat.variants import PRESETS

TINY = [
    *("--data", "stories:61", "--batch-size", "5", "--steps", "3"),
    *("--set", "data.validation_limit=11", "--set", "train.precision=float32", "--set", "train.tensorboard=false"),
]
SMALL_MODEL = """
model: {preset: sqat-xs, vocab_size: 307, hidden_size: 20, head_dim: 10, num_query_heads: 2, num_kv_heads: 1,
        num_layers: 1, intermediate_size: 11, context_length: 31}
"""


@pytest.fixture(autouse=True)
def _small_model(sqat):
    Path("small.yaml").write_text(SMALL_MODEL)


@pytest.fixture
def run_folder(sqat):
    assert sqat("train", "small.yaml", *TINY, "--out", "run")[0] == 0
    return "run"


def test_train_evaluate_generate_info_convert(sqat, run_folder):
    figures = json.loads(sqat("evaluate", run_folder, "--data", "stories:7", "--padded", "--json")[1])
    assert min(figures["loss"], figures["padded_loss"]) > 0
    assert "2 query, 1 key/value heads of 10" in sqat("info", run_folder)[1]
    assert sqat("export", run_folder, "--out", "own", "--to", "sqat")[0] == 0
    answers = [
        sqat("generate", model, "Once upon", "--max-tokens", "5", "--seed", "3") for model in (run_folder, "own")
    ]
    assert answers[0] == answers[1]
    assert (answers[0][0], answers[0][1][:9]) == (0, "Once upon")


def test_streamed_and_json_answers_agree(sqat, run_folder):
    options = ("--max-tokens", "7", "--seed", "5")
    _, streamed, _ = sqat("generate", run_folder, "One day", *options)
    _, out, _ = sqat("generate", run_folder, "One day", *options, "--json")
    answer = json.loads(out)
    assert streamed == f"One day{answer['text']}\n"
    assert set(answer) == {"prompt", "text", "tokens", "finish_reason"}


def test_home_is_meant_in_every_path(sqat, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    Path("home/text.txt").write_text("One cat sat.\n\nTwo cats ran.")
    for out in ("~/one", "--out=~/two"):
        command = ("tokenizer", "train", "~/text.txt", *(("--out", out) if out[0] == "~" else (out,)))
        assert sqat(*command, "--vocab-size", "270")[0] == 0
    assert {path.name for path in Path("home").iterdir()} == {"text.txt", "one", "two"}
    assert not Path("~").exists()


def test_evaluate_takes_the_runs_own_validation_data_and_names_what_it_scored(sqat, run_folder):
    own = json.loads(sqat("evaluate", run_folder, "--json")[1])
    (logged,) = [line for line in Path(run_folder, "metrics.jsonl").read_text().splitlines() if '"validation"' in line]
    assert own["data"] == "stories:61 (validation)"
    assert own["loss"] == pytest.approx(json.loads(logged)["loss"], rel=1e-4)
    assert own["padded_loss"] is None
    within = json.loads(sqat("evaluate", f"{run_folder}/checkpoints", "--json")[1])
    assert within == own
    assert sqat("evaluate", run_folder, "--split", "train", "--limit", "5")[1].startswith("stories:61 (train): loss ")
    assert "stories has no split 'nosuch'" in sqat("evaluate", run_folder, "--split", "nosuch")[2]
    Path("text.txt").write_text("Once upon a time.")
    assert sqat("evaluate", run_folder, "--data", "text.txt")[1].startswith("text.txt: loss ")
    code, _, error = sqat("evaluate", run_folder, "--data", "text.txt", "--split", "nosuch")
    assert code == 1
    assert "a single file is the split 'train' and has no split 'nosuch'" in error


def test_a_runs_folder_stands_for_its_model_and_tokenizer(sqat, run_folder):
    model, tokenizer = sqat_package.load_model(run_folder), sqat_package.Tokenizer.load(run_folder)
    assert model.config == sqat_package.load_model(Path(run_folder, "checkpoints")).config
    assert sqat_package.Tokenizer.load(Path(run_folder, "checkpoints")).fingerprint() == tokenizer.fingerprint()
    answer = sqat_package.generate(model, tokenizer, "Once", temperature=0.0, max_tokens=3)
    assert str(answer) == "Once" + answer.text
    assert sqat_package.generate(model, tokenizer, ["Once"], temperature=0.0, max_tokens=3) == [answer]
    assert "Once" in sqat("tokenizer", "encode", run_folder, "Once")[1].replace(" ", "") or tokenizer.encode("Once")


def test_a_comparison_does_not_begin_in_a_training_runs_folder(sqat, run_folder):
    before = sorted(Path(run_folder).iterdir())
    code, _, error = sqat("compare", "configs/compare/quick.yaml", "--out", run_folder)
    assert code == 1
    assert "run holds a training run: choose another folder" in error
    assert sorted(Path(run_folder).iterdir()) == before


def test_a_command_that_fails_leaves_no_folder(sqat):
    assert sqat("train", "small.yaml", "--data", "nothing.txt", "--out", "a/b")[0] == 1
    assert sqat("demo", "--out", "demo", "--stories", "0")[0] == 1
    assert not Path("a").exists()
    assert not Path("demo").exists()


def test_version_and_info_for_scripts(sqat, monkeypatch):
    assert sqat("--version")[:2] == (0, f"sqat {sqat_package.__version__}\n")
    record = json.loads(sqat("info", "sqat-mm", "--json")[1])["sqat-mm"]
    assert record["config"]["num_query_heads"] == 4
    assert record["flops_per_token"]["total"] == sum(v for k, v in record["flops_per_token"].items() if k != "total")
    assert len(json.loads(sqat("info", "--json")[1])) == len(PRESETS)


def test_info_fits_80_columns(sqat):
    done = subprocess.run(
        [sys.executable, "-m", "sqat", "info"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)


def test_training_says_on_what(sqat):
    out = sqat("train", "small.yaml", *TINY, "--out", "run")[1]
    assert "on cpu · float32 · own kernels" in out or "on cpu · float32 · plain torch" in out


def test_many_prompts_and_answers(sqat, run_folder, monkeypatch):
    """Prompts come from a file or from standard input."""
    Path("prompts.txt").write_text("\ufeffOne day\n\nTwo\fdogs\nA\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("One\nTwo\n"))
    for source, expected in (("prompts.txt", ["One day", "Two\fdogs", "A"]), ("-", ["One", "Two"])):
        code, out, _ = sqat("generate", run_folder, "--prompts", source, "-n", "2", "--max-tokens", "3", "--json")
        assert code == 0
        prompts = [json.loads(line)["prompt"] for line in out.splitlines()]
        assert prompts == [prompt for prompt in expected for _ in range(2)]


def test_demo_ends_with_three_commands(sqat, monkeypatch):
    monkeypatch.setitem(DEMO["data"], "validation_limit", 3)
    code, out, _ = sqat("demo", "--out", "demo", "--steps", "1", "--stories", "53")
    assert code == 0
    assert all(text in out for text in ("step 0: validation loss", "step 1: validation loss", "Once upon a time")), out
    assert len([line for line in out.splitlines() if line.startswith("sqat ")]) == 3
    assert sqat("info", "demo")[0] == 0


def test_tokenizer_train_and_encode(sqat):
    code, out, _ = sqat("tokenizer", "train", "stories:31", "--out", "tok", "--vocab-size", "300")
    assert (code, out[:11]) == (0, "300 entries")
    code, out, _ = sqat("tokenizer", "encode", "tok", "the cat")
    assert "".join(eval(line.split(None, 1)[1]) for line in out.splitlines()) == "the cat"
    path = Path("tok/tokenizer.json")
    path.write_bytes(path.read_bytes().replace(b"BPE", b"bPE"))
    code, _, error = sqat("tokenizer", "encode", "tok", "the cat")
    assert (code, "tokenizer.json is damaged or truncated: its SHA-256" in " ".join(error.split())) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "sqat-mmm"), "unknown preset 'sqat-mmm'; did you mean 'sqat-mm'?"),
        (("train", "missing.yaml"), "no configuration file at missing.yaml"),
        (("train", "sqat-xs", "--data", "./nothing.txt"), "nothing.txt"),
        (("train", "sqat-xs", "--set", "train.learning_rat=1"), "did you mean 'learning_rate'?"),
        (("train", "sqat-xs", "--lr", "-1"), "TrainConfig.learning_rate is -1.0, but must be positive"),
        (("train", "sqat-xs", "--set", "nonsense"), "must look like train.learning_rate=1e-3"),
        (("generate", "nowhere"), "nowhere is neither a checkpoint"),
        (("generate", "nowhere", "--top-p", "0"), "SamplingConfig.top_p is 0.0, but must be above 0"),
        (("generate", "nowhere", "hi", "--prompts", "x"), "use one of them"),
        (("info", "nothing"), "unknown preset 'nothing'"),
        (("tokenizer", "train", "stories:3", "--out", "t", "--vocab-size", "9"), "vocab_size is 9"),
        (("convert", "nowhere", "--out", "there"), "nowhere is neither a checkpoint"),
        (("export", "nowhere", "--out", "there"), "nowhere is neither a checkpoint"),
        (("export", "nowhere", "--out", "there", "--to", "tf"), "to is 'tf', but must be one of sqat, rxnn"),
    ],
)
def test_wrong_input_is_one_clear_line(sqat, arguments, message):
    code, _, err = sqat(*arguments)
    assert (code, message in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--steps", "1O"), ("'--steps'", "integer", "'1O'")),
        (("train", "--lr", "fast"), ("'--lr'", "number", "'fast'")),
        (("generate", "--batchsize", "3"), ("--batchsize", "--batch-size")),
        (("nonsense",), ("'nonsense'",)),
        (("tokenizer",), ("command",)),
        (("generate",), ("checkpoint",)),
        (("generate", "nowhere", "-n", "0"), ("'-n'", "greater than or equal to 1", "'0'")),
        (("generate", "nowhere", "-n", "9" * 20), ("'-n'", "less than or equal to 10000", "9" * 20)),
        (("evaluate", "nowhere", "--batch-size", "0"), ("'--batch-size'", "greater than or equal to 1", "'0'")),
    ],
)
def test_options_that_cannot_be_read_are_one_line_too(sqat, arguments, words):
    code, _, err = sqat(*arguments)
    assert (code, err.count("\n"), [word for word in words if word not in err]) == (2, 1, []), err


def test_tokenising_shows_the_time_left_without_a_terminal(sqat, monkeypatch, capsys):
    clock = iter(range(0, 9999, 20))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with tokenising() as progress:
        progress(1000, 0, None)
        progress(1, 5, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training a tokenizer on 1,000 documents, 20 s"
    assert lines[1].startswith("tokenising: 5 tokens, 1 of 4 documents, 40 s, about 120 s left")


def test_the_former_spelling_still_works_and_gives_a_hint(sqat, run_folder):
    code, _, err = sqat("convert", run_folder, "--out", "own", "--layout", "sqat")
    assert (code, err) == (0, "hint: without --query-heads this is now `sqat export run --to sqat --out own`\n")
    assert sqat("generate", "own", "Once upon", "--max-tokens", "5", "--seed", "3")[1].startswith("Once upon")
    code, _, err = sqat("convert", run_folder, "--out", run_folder)
    assert (code, "which exists and is not empty" in err) == (1, True)


def test_export(sqat, run_folder):
    code, out, _ = sqat("export", run_folder, "--to", "stock", "--out", "stock")
    assert (code, out) == (0, "run written to stock as Llama\n")
    assert Path("stock/tokenizer.json").is_file()
    code, _, err = sqat("export", run_folder, "--to", "stock", "--out", "stock")
    assert (code, "out is stock, which exists and is not empty" in err) == (1, True)
    assert sqat("export", run_folder, "--out", "transformers")[0] == 0
    assert sqat("generate", "transformers", "Once upon", "--max-tokens", "5", "--seed", "3")[1].startswith("Once upon")
    code, _, err = sqat("export", run_folder, "--out", "original", "--to", "rxnn")
    assert (code, Path("original").exists()) == (1, False)
    assert "tie_embeddings is True, but RxNN's layout holds models with tie_embeddings False only" in err


def test_info_of_windows_and_reverse_heads(sqat):
    out = " ".join(sqat("info", "flexsqat-m")[1].split())  # lines are as wide as the terminal
    assert "sqa, window 128, 4 global tokens: 8 query, 4 key/value heads of 16" in out
    assert "2,048 bytes per token (16-bit), 270,336 at most" in out  # 128 + 4 positions
    assert "H/Hkv = 2 times" in sqat("info", "rsqat-mm")[1]
