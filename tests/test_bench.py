"""`sqat.bench`: every measurement gives a plausible number."""

import pytest
import torch

from sqat import bench
from sqat.errors import ConfigError


def test_models_are_measured_in_every_round(monkeypatch, tiny_config):
    monkeypatch.setattr(bench, "preset", lambda name: tiny_config(num_layers=1))
    found = bench.bench(["a"], device="cpu", batch_size=2, context=7, prompt=5, rounds=2)
    measured = found["models"]["a"]
    assert set(measured) == {"training", "evaluation", "prompt", "decoding"}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in measured.values())
    assert found["settings"] == {"device": "cpu", "batch_size": 2, "context": 7, "prompt": 5, "rounds": 2}
    assert found["environment"]["versions"]["torch"]


@pytest.mark.parametrize("changes", [{}, {"num_query_heads": 3, "num_kv_heads": 6}, {"window": 5, "global_tokens": 2}])
@pytest.mark.parametrize("backward", [False, True])
def test_attention_runs_for_every_kind_of_heads(tiny_config, changes, backward):
    bench.attention_call(tiny_config(**changes), 2, 11, "cpu", backward=backward)()
    machine = bench.environment()
    assert machine["threads"] == torch.get_num_threads()
    assert {"cpu", "gpu", "memory_bytes", "revision", "date", "variables"} <= set(machine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds is 0, but must be between 1 and 1,048,576"),
        ({"batch_size": -3}, "batch_size is -3, but must be between 1 and 1,048,576"),
        ({"prompt": 10**12}, "prompt is 1000000000000, but must be between 1 and 1,048,576"),
        ({"context": 0}, "context_length is 0, but must be at least 2"),
        ({"device": "tpu"}, "device is 'tpu', but must be one of auto, cpu, cuda"),
        ({"models": ["sqat-mmm"]}, "unknown preset 'sqat-mmm'; did you mean 'sqat-mm'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        bench.bench(**{"models": ["sqat-mm"], "device": "cpu", **arguments})
