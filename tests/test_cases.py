"""Faults that public reports of similar software tell of, each tried as a user would meet it; details are tested beside
the code.
"""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sqat import Attention, Decoder, load_model, save_model, start_run
from sqat.data.stories import story
from sqat.train import Callback

MODEL = {"preset": "sqat-xs", "num_layers": 1, "vocab_size": 300, "context_length": 31}
QUICK = ("--steps", "2", "--batch-size", "3", "--set", "train.tensorboard=false")


@pytest.fixture
def train(sqat):
    """`train(data, …)` runs `sqat train` on a small model in the folder `run`; gives (exit code, output, errors)."""
    Path("small.yaml").write_text(json.dumps({"model": MODEL}))
    return lambda data, *options: sqat("train", "small.yaml", "--data", str(data), "--out", "run", *QUICK, *options)


def write(name, *documents):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("\n\n".join(documents))


def test_data_that_changed_are_not_resumed_on_in_silence(train):
    write("text.txt", *map(story, range(120)))
    assert train("text.txt")[0] == 0
    write("text.txt", *map(story, range(150)))
    code, _, error = train("text.txt", "--resume")
    assert code == 1
    assert "began with other training data" in error
    assert train("text.txt", "--resume", "--accept-new-data")[0] == 0


def test_evaluating_a_run_says_where_its_validation_data_changed(train, sqat):
    write("text.txt", *map(story, range(120)))
    assert train("text.txt")[0] == 0
    assert "note" not in sqat("evaluate", "run")[2]
    write("text.txt", *map(story, range(120, 240)))
    assert (
        f"note: these are other validation data than the run in {Path('run').absolute()} began with"
        in sqat("evaluate", "run")[2]
    )
    assert "note" not in sqat("evaluate", "run", "--split", "train")[2]


@pytest.mark.parametrize(
    "names", [("a-train.txt", "a-valid.txt"), ("b.train.txt", "b.test.txt", "b.val.txt"), ("train/1.txt", "dev/2.txt")]
)
def test_validation_files_are_not_trained_on(train, caplog, names):
    for name in names:
        write(f"data/{name}", *map(story, range(3)))
    code, out, _ = train("data")
    assert (code, "3 documents" in out) == (0, True)
    assert f"data: the split 'train' is {names[0]}" in caplog.messages


def test_files_are_not_left_out_in_silence(train):
    write("data/Novel.txt", story(0))
    write("data/more/Testing the waters.txt", story(1))
    write("data/c.jsonl", json.dumps({"text": story(2)}))
    assert "comes as .jsonl, .txt (Novel.txt, c.jsonl, more/Testing the waters.txt)" in train("data")[2]
    assert "2 documents" in train("data/**/*.txt")[1]


def test_a_gradient_penalty_is_true_or_refused():
    layer, x = Attention(20, 2, 1, 6), torch.randn(1, 7, 20, requires_grad=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_tracers_export_and_the_meta_device_work():
    layer, x = Attention(20, 2, 1, 6).eval(), torch.randn(1, 7, 20)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))
    length = torch.export.Dim("length", min=2, max=99)
    torch.export.export(layer, (x,), dynamic_shapes=({1: length},))
    assert layer.to("meta")(x.to("meta")).shape == x.shape


def test_one_long_prompt_among_short_ones(train, sqat):
    assert train("stories:61")[0] == 0
    prompts = [*(f"Story {i}" for i in range(20)), " ".join(map(story, range(4))).replace("\n", " "), "The end"]
    Path("prompts.txt").write_text("\n".join(prompts))
    lines = sqat("generate", "run", "--prompts", "prompts.txt", "--max-tokens", "2", "--json")[1].splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == prompts


def test_parquet_as_others_write_it(train):
    for i, texts in enumerate(([story(i) for i in range(5)], [])):
        Path("data").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"text": pa.array(texts, None if texts == [] else pa.string())}),
            f"data/train-0000{i}-of-00002.parquet",
        )
    assert "5 documents" in train("data")[1]
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), "twice.parquet")
    assert "2 fields are called 'text'" in train("twice.parquet", "--out", "other")[2]


def test_names_and_padding(train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("val.txt", story(7))
    assert train("stories:61", "--validation", "~/val.txt")[0] == 0
    Path("odd").mkdir()
    Path("odd", os.fsdecode(b"\xfe.txt.gz")).write_bytes(gzip.compress(story(1).encode()) + bytes(100))
    assert "1 documents" in train("odd", "--out", "odd-run")[1]


def test_no_home_and_no_name():
    code = (
        "import os, pwd; os.environ.pop('HOME', None); pwd.getpwuid = lambda _: {}[0]\n"
        "import torch, sqat; print(sqat.Attention(20, 2, 1, 6)(torch.randn(1, 7, 20, requires_grad=True)).shape)"
    )
    variables = {k: v for k, v in os.environ.items() if k not in ("HOME", "SQAT_CACHE", "NUMBA_CACHE_DIR")}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "torch.Size([1, 7, 20])\n", done.stderr
    assert done.stderr.count("nothing is cached") <= 1


def test_a_compiled_model_is_saved(tiny_model, tmp_path):
    save_model(torch.compile(tiny_model()), tmp_path / "compiled")
    assert isinstance(load_model(tmp_path / "compiled"), Decoder)


def test_training_goes_on_in_a_notebook(tmp_path):
    class Interrupt(Callback):
        def on_step(self, trainer):
            if trainer.state.step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    settings = {"max_steps": 3, "batch_size": 2, "tensorboard": False}
    config = {"model": MODEL, "data": {"source": "stories:120", "cache_dir": str(tmp_path)}, "train": settings}
    trainer = start_run(config, tmp_path / "run", callbacks=[Interrupt()])
    trainer.train()
    assert trainer.state.step == 1
    trainer.train()
    assert trainer.state.step == 3
