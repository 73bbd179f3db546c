"""The experiment on padding and the router loss: it goes on where it was stopped, and its figures come of raw data."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqat.run_config import RunConfig, read_yaml
from sqat.variants import preset

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "padding-and-router"
CONFIGS = sorted((FOLDER / "configs").glob("*.yaml"))
NAMES = ["packed", "packed-card-router", "rows", "rows-padding"]
TINY = {
    "model.num_layers": 1,
    "model.vocab_size": 307,
    "model.num_experts": 5,
    "model.intermediate_size": 13,
    "data.validation_limit": 5,
    "train.max_steps": 30,
    "train.evaluate_every": 11,
    "train.checkpoint_every": 2,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_runs_differ_in_what_they_are_named_for(path):
    run = RunConfig.from_dict(read_yaml(path))
    assert path.read_text().startswith(
        f"# sqat train benchmarks/padding-and-router/configs/{path.name} --data path/to/TinyStories"
    )
    assert run.model == preset("sqat-mm")
    assert run.train.router_loss == ("card" if "card-router" in path.stem else "balanced")
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
    text = (FOLDER / "README.md").read_text()
    (tmp_path / "README.md").write_text(text)
    return tmp_path


def figures(folder):
    command = [sys.executable, str(FOLDER / "figures.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_figures_come_of_the_last_evaluation(results):
    assert figures(results).returncode == 0
    text = (results / "README.md").read_text()
    assert "| padded rows, padding a target (the card) | 200 | 3.0000 | 20.10 | 40.00% | 0.7500 | 30.00% |" in text
    assert "| the card's | 1 | 2.50 | 0.05 | 0.83 | 1 |" in text  # half of all choices, of five experts
    assert "| balanced | 2 | 1.00 | 1.00 | 0.00 | 0 |" in text
    assert "## Results" in text
    written = [(results / name).read_bytes() for name in ("README.md", "padding.png", "router.png")]
    assert figures(results).returncode == 0
    assert written == [(results / name).read_bytes() for name in ("README.md", "padding.png", "router.png")]


def test_what_is_missing_is_named(results):
    (results / "raw" / "packed-card-router.jsonl").unlink()
    (results / "raw" / "rows.jsonl").unlink()
    done = figures(results)
    assert done.returncode == 0
    assert "not done yet, and left out: packed-card-router, rows" in done.stdout
    assert "the card's |" not in (results / "README.md").read_text()
    for path in (results / "raw").iterdir():
        path.unlink()
    assert "has no results yet: run.py makes them" in figures(results).stderr
    (results / "raw" / "packed.jsonl").write_text(json.dumps(line(3)) + "\n")
    (results / "README.md").write_text("")
    assert "must hold the lines" in figures(results).stderr


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path):
    raw, runs = tmp_path / "raw", tmp_path / "runs"
    raw.mkdir()
    for name in NAMES[2:]:
        (raw / f"{name}.jsonl").write_text("kept")
    command = [sys.executable, str(FOLDER / "run.py"), "stories:60", "--raw", str(raw), "--out", str(runs)]
    command += [f"--set={name}={value}" for name, value in TINY.items()]
    environment = {**os.environ, "SQAT_CACHE": str(tmp_path / "cache")}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not list(runs.glob("*/checkpoints/step-*")) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)  # its runs live on: the next start waits for them
    killed.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "packed: done" in done.stdout
    for name in NAMES[:2]:
        steps = [json.loads(text) for text in (raw / f"{name}.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in steps if entry["kind"] == "validation"] == [11, 22, 30]
        assert len(steps[-1]["router_load"][0]) == 5
    assert (raw / "rows.jsonl").read_text() == "kept"
