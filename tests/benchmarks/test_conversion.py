"""The experiment on conversion, in tiny sizes: it goes on where it was stopped, and its table says what it found."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sqat.convert.uptrain import Uptraining
from sqat.train.checkpoints import list_checkpoints

FOLDER = Path(__file__).parents[2] / "benchmarks" / "conversion"


@pytest.fixture
def driver():
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "run.py"), run_name="conversion_run"))


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    sizes = {"vocab_size": 307, "hidden_size": 24, "intermediate_size": 13, "num_hidden_layers": 2, "head_dim": 6}
    sizes["max_position_embeddings"] = 29
    options = ["stories:60", "--tokens", "2000", "--shares", "10", "--methods", "mean", "cluster-activation"]
    options += ["--architectures", "llama", "--batch-size", "3", "--validation", "3", "--calibration", "5"]
    options += ["--device", "cpu", "--out", str(tmp_path / "out"), "--raw", str(tmp_path / "raw")]
    return ["run.py", *options, *(f"--size={name}={value}" for name, value in sizes.items())]


def test_all_of_it_in_tiny_sizes_stopped_once(driver, command, monkeypatch, tmp_path, capsys):
    step = Uptraining._step

    def interrupted(self, data):
        if self.state.step == 5:
            self.interrupt("a test")
        return step(self, data)

    monkeypatch.setattr(sys, "argv", command)
    with monkeypatch.context() as patch:
        patch.setattr(Uptraining, "_step", interrupted)
        with pytest.raises(SystemExit, match="stopped; the same command goes on"):
            driver.main()
    checkpoints = list_checkpoints(tmp_path / "out/runs/llama-trained")
    assert [path.name for path in checkpoints] == ["step-00000006"]
    driver.main()
    results = [json.loads(line) for line in (tmp_path / "raw/results.jsonl").read_text().splitlines()]
    assert len(results) == 1 + 2 * (2 + 2)
    trained = results[0]
    assert trained["method"] == "trained"
    assert trained["last"] < trained["first"]
    for result in results:
        if result["method"] in ("mean", "cluster-activation"):
            assert result["tokens"] == pytest.approx(2000 * result["share"] / 100, rel=0.5)
    text = (tmp_path / "raw/table.md").read_text()
    assert f"{trained['last']:.2f}" in text
    assert text in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    (tmp_path / "raw/results.jsonl").unlink()
    driver.main()  # all is done: the same results, and nothing is trained
    assert [json.loads(line) for line in (tmp_path / "raw/results.jsonl").read_text().splitlines()] == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == made


def test_the_table_has_a_row_for_every_method(driver):
    def result(method, share, first, last, heads=4):
        return driver.Result("llama", heads, method, share, 7, first, last)

    results = [
        result("trained", 100, 300.0, 5.25, heads=8),
        result("from scratch", 1, 300.0, 90.0),
        result("from scratch", 100, 300.0, 5.5),
        result("mean", 1, 41.0, 7.75),
    ]
    assert driver.table(results).splitlines()[2:] == [
        "| llama | 4 | from scratch |  |  | 90.00 | 5.50 |",
        "| llama | 4 | mean | 5.25 | 41.00 | 7.75 |  |",
    ]
