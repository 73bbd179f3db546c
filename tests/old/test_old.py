"""What was written at commit ef21ff1 still loads, gives the same logits, and goes on to the same losses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sqat import load_model
from sqat.convert.files import read_model
from sqat.convert.uptrain import start_uptraining
from sqat.run_config import RunConfig, read_yaml
from sqat.train import start_run
from sqat.train.checkpoints import best_checkpoint
from sqat.train.state import current_names, read_state
from sqat.uptrain_config import UptrainConfig

HERE = Path(__file__).parent
STOP = 5  # where the old runs were stopped
START = {"dense": start_run, "moe": start_run, "uptrain": start_uptraining}


@pytest.fixture(autouse=True)
def _copies(tmp_path, monkeypatch):
    """The folders' configurations name files relative to where they were made."""
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.chdir(tmp_path)


def resume(name):
    config = (UptrainConfig if name == "uptrain" else RunConfig).from_dict(read_yaml(Path(name, "config.yaml")))
    return START[name](config, name, resume=True)


def assert_same_log(name):
    """Every metric of every line, to 1e-5; times are left out, and what one token more or less at an expert changes is
    held to 2 %: rounding decides where two experts are nearly tied. The first training line after the stop has other
    means, since it covers the steps since then.
    """
    lines = [current_names(json.loads(line)) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    expected = [current_names(line) for line in json.loads((HERE / "logs.json").read_text())[name]]
    assert [(line["kind"], line["step"]) for line in lines] == [(line["kind"], line["step"]) for line in expected]
    across = next(line for line in expected if line["kind"] == "train" and line["step"] > STOP)
    for line, old in zip(lines, expected, strict=True):
        if old is across:
            continue
        assert line.keys() == old.keys()
        asked_for_now = {"padded_loss", "padded_accuracy"}  # they were always measured
        for key in old.keys() - {"kind", "tokens_per_second", "data_wait"} - asked_for_now:
            values = (np.array(each[key], dtype=float) for each in (line, old))
            routed = name == "moe" and (key == "grad_norm" or key.startswith("router"))
            rtol = 0.02 if routed else 1e-5
            np.testing.assert_allclose(*values, rtol=rtol, atol=1e-7, err_msg=f"{key}, step {old['step']}")


@pytest.mark.parametrize("name", START)
def test_an_old_run_resumes_to_the_same_losses(name):
    trainer = resume(name)
    assert trainer.state.step == STOP
    trainer.train()
    assert_same_log(name)


def test_the_best_checkpoint_of_an_old_run():
    best = best_checkpoint(Path("moe"))
    assert best == Path("moe/checkpoints/step-00000003")
    assert {"padded_loss", "padded_accuracy"} <= read_state(best).evaluation.keys()


@pytest.mark.parametrize(("name", "read"), [("rxnn", load_model), ("mixed", read_model)])
@torch.no_grad()
def test_an_old_checkpoint_gives_the_same_logits(name, read):
    stored = load_file(HERE / "logits.safetensors")
    torch.testing.assert_close(read(HERE / name)(stored["rows"]).logits, stored[name], rtol=1e-5, atol=1e-6)
