"""A small run on the built-in stories, cheap enough to repeat."""

import json

import pytest

from sqat.config import ModelConfig
from sqat.run_config import DataConfig, RunConfig, TrainConfig
from sqat.train import Callback, start_run

TINY = {
    "vocab_size": 307,
    "hidden_size": 20,
    "num_layers": 2,
    "intermediate_size": 11,
    "context_length": 29,
    "num_query_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 10,
    "num_experts": 3,
    "feedforward_dropout": 0.1,
}
SETTINGS = {"batch_size": 5, "precision": "float32", "log_every": 1, "tensorboard": False, "max_steps": 7}


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """The cache folder of all these runs: their data are the same."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def run_config(shared_cache):
    """`run_config(max_steps=7, model={...}, data={...}, …)`: a mixture-of-experts model with dropout on 61 stories."""

    def build(model=None, data=None, **train):
        text = {"source": "stories:61", "validation_limit": 1, "cache_dir": shared_cache}
        return RunConfig(
            model=ModelConfig.from_dict({**TINY, **(model or {})}),
            data=DataConfig.from_dict({**text, **(data or {})}),
            train=TrainConfig.from_dict({**SETTINGS, **train}),
        )

    return build


@pytest.fixture
def start(run_config, tmp_path):
    """`start("run", max_steps=7, …)`: the trainer of such a run in a folder of `tmp_path`."""

    def begin(folder="run", *, callbacks=(), resume=False, accept_new_data=False, **settings):
        how = {"resume": resume, "accept_new_data": accept_new_data}
        return start_run(run_config(**settings), tmp_path / folder, callbacks=callbacks, **how)

    return begin


@pytest.fixture
def trained(start):
    """As `start`, and the run is trained to its end."""

    def train(*arguments, **settings):
        trainer = start(*arguments, **settings)
        trainer.train()
        return trainer

    return train


@pytest.fixture
def log(tmp_path):
    """`log("run")`: the lines of a run's metrics.jsonl without wall-clock times, "train" or "validation" ones or all;
    NaN must not be in them.
    """

    def read(folder="run", kind=None):
        text = (tmp_path / folder / "metrics.jsonl").read_text()
        records = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
        lines = [{k: v for k, v in line.items() if k not in ("tokens_per_second", "data_wait")} for line in records]
        return [line for line in lines if kind in (None, line["kind"])]

    return read


@pytest.fixture
def at():
    """`at(3, action)`: a callback that calls `action(trainer)` after step 3."""

    class At(Callback):
        def __init__(self, step, action):
            self.step, self.action = step, action

        def on_step(self, trainer):
            if trainer.state.step == self.step:
                self.action(trainer)

    return At


@pytest.fixture
def interrupt(at):
    """`interrupt(3)`: a callback that interrupts the run after step 3."""
    return lambda step: at(step, lambda trainer: trainer.interrupt("a test"))
