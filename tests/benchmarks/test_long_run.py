"""The long run, for a moment: it goes on where it was stopped, and its figures are those of its samples."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "long-run" / "run.py"
TINY = ["model.num_layers=1", "model.vocab_size=307", "model.hidden_size=32", "model.intermediate_size=13"]
TINY += ["model.context_length=31", "train.log_every=1", "train.evaluate_every=3", "train.checkpoint_every=2"]
TINY += ["train.precision=float32", "train.tensorboard=false", "data.validation_limit=2", "train.device=cpu"]


@pytest.fixture(scope="module")
def long_run():
    spec = importlib.util.spec_from_file_location("long_run", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_sittings(long_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    out, raw = tmp_path / "out", tmp_path / "raw"
    sets = [word for change in TINY for word in ("--set", change)]
    command = ["--seconds", "0", "--data", "stories:53", "--out", str(out), "--raw", str(raw), *sets]
    long_run.main(["--minutes", "0.001", *command])  # over at its first line
    with (out / long_run.SAMPLES).open("a") as file:
        file.write('{"sitting": 0, "seco')  # a kill cuts a line short
    minutes = str(long_run.read_samples(out / long_run.SAMPLES)[-1]["seconds"] / 60 + 0.01)
    long_run.main(["--minutes", minutes, *command])
    samples = long_run.read_samples(out / long_run.SAMPLES)
    assert {sample["sitting"] for sample in samples} == {0, 1}
    assert [sample["step"] for sample in samples] == list(range(1, len(samples) + 1))
    assert all(sample["files"] > 2 and sample["rss_bytes"] > 1 << 20 and sample["threads"] >= 1 for sample in samples)
    found = json.loads((raw / "figures.json").read_text())
    assert found["step"] in [sample["step"] for sample in samples]  # of the longer sitting
    assert found["rss_bytes"]["most"] <= max(sample["rss_bytes"] for sample in samples)
    assert "| open files |" in capsys.readouterr().out
    before = len(samples)
    long_run.main(["--minutes", minutes, *command])  # nothing is left to do
    assert len(long_run.read_samples(out / long_run.SAMPLES)) == before


def test_slopes(long_run):
    def sample(sitting, minute, rss):
        figures = {"rss_bytes": rss, "files": 17, "threads": 3, "tokens_per_second": 100.0}
        return {"sitting": sitting, "seconds": 60.0 * minute, "step": minute, **figures}

    warm = [sample(1, minute, 5) for minute in range(6)]  # a tenth: left out
    rising = [sample(1, minute, 1000 + 2 * minute) for minute in range(6, 61)]
    found = long_run.figures([sample(0, 1, 9), *warm, *rising])
    assert found["samples"] == 55
    assert found["minutes"] == pytest.approx(54)
    assert found["rss_bytes"]["per_hour"] == pytest.approx(120)
    assert found["files"]["per_hour"] == pytest.approx(0)
    assert (found["files"]["least"], found["files"]["most"]) == (17, 17)
    assert "| open files | 17 | 17 | 17 | 17 | +0.0 |" in long_run.table(found).replace("-0.0", "+0.0")
