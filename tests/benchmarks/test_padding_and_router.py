"""The experiment on padding and the router loss: what its runs differ in, and that its figures come from raw data."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from sqat.run_config import RunConfig, read_yaml
from sqat.variants import preset

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "padding-and-router"
CONFIGS = sorted((FOLDER / "configs").glob("*.yaml"))
NAMES = ["packed", "packed-card-router", "rows", "rows-padding"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_runs_differ_in_what_they_are_named_for(path):
    run = RunConfig.from_dict(read_yaml(path))
    command = f"# sqat train benchmarks/padding-and-router/configs/{path.name} --data path/to/TinyStories"
    assert path.read_text().startswith(command)
    assert run.model == preset("sqat-mm")
    assert run.train.router_loss == ("rxnn" if "card-router" in path.stem else "balanced")
    assert run.data.mode == path.stem.partition("-")[0]
    assert run.data.padding_as_target == path.stem.endswith("-padding")
    same = RunConfig.from_dict(read_yaml(CONFIGS[0])).to_dict()["train"] | {"router_loss": None}
    assert run.to_dict()["train"] | {"router_loss": None} == same


def line(step, **changes):
    figures = {"loss": 3.0, "perplexity": 20.1, "accuracy": 0.4, "bits_per_byte": 1.1, "router_entropy": 1.5}
    load = [[0.5, 0.1, 0.19, 0.01, 0.2], [0.2] * 5]
    card = {"card_loss": 5.5, "card_accuracy": 0.3, "router_load": load}
    return {"kind": "validation", "step": step, **figures, **card, **changes}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "raw").mkdir()
    for name in NAMES:
        lines = [line(100), line(200, card_loss=0.75 if name == "rows-padding" else 5.25)]
        (tmp_path / "raw" / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    shutil.copy(FOLDER / "README.md", tmp_path)
    return tmp_path


@pytest.fixture
def figures(monkeypatch):
    """Runs figures.py on a folder."""

    def run(folder):
        monkeypatch.setattr(sys, "argv", ["figures.py", str(folder)])
        runpy.run_path(str(FOLDER / "figures.py"), run_name="__main__")

    return run


def test_figures_come_from_the_last_evaluation(results, figures):
    figures(results)
    text = (results / "README.md").read_text()
    assert "| padded rows, padding a target (the card) | 200 | 3.0000 | 20.10 | 40.00% | 0.7500 | 30.00% |" in text
    assert "| the card's | 1 | 2.50 | 0.05 | 0.83 | 1 |" in text  # half of all choices, of five experts
    assert "| balanced | 2 | 1.00 | 1.00 | 0.00 | 0 |" in text
    assert "## Results" in text
    written = [(results / name).read_bytes() for name in ("README.md", "padding.png", "router.png")]
    figures(results)
    assert written == [(results / name).read_bytes() for name in ("README.md", "padding.png", "router.png")]


def test_what_is_missing_is_named(results, figures, capsys):
    (results / "raw" / "packed-card-router.jsonl").unlink()
    (results / "raw" / "rows.jsonl").unlink()
    figures(results)
    assert "not done yet, and left out: packed-card-router, rows" in capsys.readouterr().out
    assert "the card's |" not in (results / "README.md").read_text()
    for path in (results / "raw").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match="has no results yet"):
        figures(results)
