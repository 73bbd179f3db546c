"""The command in a card describes the very run that it was made from."""

import shlex
import sys

import pytest

from sqat.cli import main
from sqat.model_card import settings, training_command
from sqat.run_config import RunConfig
from sqat.uptrain_config import UptrainConfig

RUNS = [
    {"model": "sqat-mm"},
    {"model": {"preset": "xsqat-s", "num_layers": 3, "rope_theta": 500.0}, "data": {"source": "a/b:c d"}},
    {
        "model": {"preset": "gqa-ref-mini", "window": 17, "norm_eps": 1e-5},
        "data": {"source": "owner/name", "validation": "owner/other", "limit": 31, "mode": "rows"},
        "train": {
            "epochs": None,
            "max_steps": 7,
            "learning_rate": 1.5e-4,
            "clip_norm": None,
            "device": "cpu",
            "seed": 3,
        },
    },
]
UPTRAINING = {
    "model": {"path": "owner/model", "tokens": 1301, "teacher": "owner/teacher", "context_length": 29},
    "data": {"source": "stories:61"},
    "train": {"batch_size": 5, "precision": "bf16"},
}


def described(command, monkeypatch):
    """The configuration that the command line makes of a command."""
    found = []
    monkeypatch.setattr("sqat.cli.train.run_training", lambda config, *_, **__: found.append(config))
    monkeypatch.setattr("sqat.cli.uptrain.run_uptraining", lambda config, *_, **__: found.append(config))
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit, match="0"):
        main()
    return found[0]


@pytest.mark.parametrize("values", RUNS, ids=lambda values: str(values["model"]))
def test_command_of_a_run(values, monkeypatch):
    config = RunConfig.from_dict(values)
    assert described(training_command(config), monkeypatch) == config


@pytest.mark.parametrize("changes", [{}, {"teacher": None, "kl_weight": 0.5}])
def test_command_of_an_uptraining(changes, monkeypatch):
    config = UptrainConfig.from_dict({**UPTRAINING, "model": {**UPTRAINING["model"], **changes}})
    assert described(training_command(config), monkeypatch) == config


def test_what_is_at_its_default_is_left_out():
    assert training_command(RunConfig.from_dict(RUNS[0])) == "sqat train sqat-mm --data stories"
    config = UptrainConfig.from_dict({"model": {"path": "a/b", "tokens": 7}})
    assert training_command(config) == "sqat uptrain a/b --tokens 7 --data stories"


def test_folders_of_the_machine_are_not_shown():
    data = {"source": "/home/somebody/text.txt", "tokenizer": "~/tokens", "cache_dir": "/home/somebody/cache"}
    config = RunConfig.from_dict({"model": "sqat-mm", "data": data})
    for text in (training_command(config), settings(config)):
        assert "PATH/text.txt" in text
        assert "PATH/tokens" in text
        assert "somebody" not in text
    path = UptrainConfig.from_dict({"model": {"path": "/home/somebody/half", "tokens": 7}})
    assert "sqat uptrain PATH/half" in training_command(path)
    assert "somebody" not in settings(path)
