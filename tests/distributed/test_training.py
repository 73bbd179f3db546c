"""Several processes compute what one does."""

import json
import os

import numpy as np
import pytest
from safetensors.torch import load_file

from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer
from sqat.train.checkpoints import list_checkpoints

in_full = pytest.mark.skipif(os.environ.get("SQAT_FAULTS") != "full", reason="takes long: SQAT_FAULTS=full")
TIMES = ("tokens_per_second", "data_wait")


def log(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_log(got, expected):
    """Every figure of every line, to 1e-5."""
    ours, theirs = log(got), log(expected)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"kind", *TIMES}:
            figures = (np.array(line[name], dtype=float) for line in (a, b))  # NaN where there is none
            np.testing.assert_allclose(*figures, rtol=1e-5, atol=1e-6, err_msg=f"{name}, step {a['step']}")


def assert_same_weights(got, expected, *, exactly=False):
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (load_file(list_checkpoints(run)[-1] / name) for run in (got, expected))
        assert ours.keys() == theirs.keys()
        for key in ours:
            if exactly:
                assert ours[key].equal(theirs[key]), key
            elif not key.startswith("rng."):
                assert (ours[key] - theirs[key]).abs().max() < 2e-5, key


# Rows that the number of processes does not divide; the last batch of an epoch has but one.
CASES = {
    "packed": {"data": {"limit": 3}, "batch_size": 5, "gradient_accumulation": 2, "max_steps": 6, "evaluate_every": 3},
    "rows": {"data": {"mode": "rows", "limit": 25}, "batch_size": 12, "max_steps": 4, "router_loss": "rxnn"},
    "dense": {"model": {"num_experts": 0, "tie_embeddings": False}, "gradient_checkpointing": True},
    "compiled": {"compile": True, "max_steps": 2},
}
LONG = [(4, "ddp", "rows"), (4, "fsdp", "rows"), (2, "ddp", "dense"), (2, "fsdp", "dense"), (2, "ddp", "compiled")]


@pytest.mark.parametrize(
    ("processes", "parallel", "case"),
    [
        *((2, "ddp", "packed"), (3, "ddp", "rows"), (2, "fsdp", "packed")),
        *(pytest.param(*case, marks=in_full) for case in LONG),
    ],
)
def test_equals_one_process(launch, run_values, tmp_path, processes, parallel, case):
    [alone] = launch(1, {"config": run_values(**CASES[case]), "out": str(tmp_path / "one")})
    config = run_values(**CASES[case], parallel=parallel)
    results = launch(processes, {"config": config, "out": str(tmp_path / "several")})
    parts = [result.pop("own") for result in results]
    whole = alone.pop("own")
    assert results == [alone] * processes
    assert parts == [whole] * processes if parallel == "ddp" else sum(parts) == whole
    assert_same_log(tmp_path / "several", tmp_path / "one")
    assert_same_weights(tmp_path / "several", tmp_path / "one")


@in_full
def test_shards_of_processes(launch, run_values, tmp_path):
    launch(1, {"config": run_values(), "out": str(tmp_path / "one")})
    launch(2, {"config": run_values(), "out": str(tmp_path / "several"), "shards": 2})
    assert_same_log(tmp_path / "several", tmp_path / "one")


@in_full
@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_uptraining(launch, tmp_path, name):
    student, teacher = stock_model(name, tmp_path / "student"), stock_model(name, tmp_path / "teacher")
    config = {
        "model": {"path": student, "teacher": teacher, "tokens": 1500, "context_length": 23},
        "data": {"source": "stories:9", "validation_limit": 3, "cache_dir": str(tmp_path / "cache")},
        "train": {"batch_size": 5, "precision": "float32", "tensorboard": False, "log_every": 1, "device": "cpu"},
    }
    launch(1, {"uptrain": True, "config": config, "out": str(tmp_path / "one")})
    launch(2, {"uptrain": True, "config": config, "out": str(tmp_path / "several"), "deeds": [(1, 3, "SIGTERM")]})
    launch(2, {"uptrain": True, "config": config, "out": str(tmp_path / "several"), "resume": True})
    assert "kl" in log(tmp_path / "several")[0]
    assert_same_log(tmp_path / "several", tmp_path / "one")
    assert_same_weights(tmp_path / "several", tmp_path / "one")
    config["train"]["parallel"] = "fsdp"
    refused, _ = launch(2, {"uptrain": True, "config": config, "out": str(tmp_path / "cut")})
    assert refused["message"] == 'parallel is "fsdp", but must be "ddp" for models other than this package\'s own'


def stock_model(name, folder):
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    kind = {"qwen3": "Qwen3Config", "mixtral": "MixtralConfig"}[name]
    config = getattr(transformers, kind)(**sizes, vocab_size=307, intermediate_size=16, head_dim=10)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer([story(i, seed=0, split="train") for i in range(30)], 307).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    "counts",
    [[2, 1], pytest.param([1, 2, 4, 1], marks=in_full), pytest.param([4, "fsdp", 1, "fsdp"], marks=in_full)],
    ids=str,
)
def test_any_number_of_processes_goes_on_from_any_other(launch, run_values, tmp_path, counts):
    """Over the same rows, to the bit."""
    config = run_values(max_steps=2 * len(counts))
    [whole] = launch(1, {"config": config, "out": str(tmp_path / "whole"), "tell_steps": True})
    assert len({rows for _, _, rows in whole["steps"]}) == 2 * len(counts)
    for i, count in enumerate(counts):
        config["train"]["parallel"] = "fsdp" if count == "fsdp" else "ddp"
        last = i == len(counts) - 1
        processes = 2 if count == "fsdp" else count
        deeds = [] if last else [(processes - 1, 2 * (i + 1), "SIGTERM")]
        job = {"config": config, "out": str(tmp_path / "parts"), "resume": i > 0, "deeds": deeds, "tell_steps": True}
        states = launch(processes, job)
        assert [(state["step"], state["interrupted"]) for state in states] == [(2 * (i + 1), not last)] * processes
        steps = whole["steps"][2 * i : 2 * (i + 1)]
        assert [state["steps"] for state in states] == [steps] * processes
        assert [state["data"] for state in states] == [steps[-1][:2]] * processes
    assert_same_log(tmp_path / "parts", tmp_path / "whole")
    exact = [{name: line.get(name) for name in ("step", "tokens", "kind")} for line in log(tmp_path / "whole")]
    assert [{name: line.get(name) for name in ("step", "tokens", "kind")} for line in log(tmp_path / "parts")] == exact
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=in_full)])
def test_resumed_run_is_uninterrupted_run_to_the_bit(launch, run_values, tmp_path, processes):
    config = run_values(max_steps=4, model={"feedforward_dropout": 0.1})
    launch(processes, {"config": config, "out": str(tmp_path / "whole")})
    job = {"config": config, "out": str(tmp_path / "parts")}
    launch(processes, {**job, "deeds": [(0, 2, "SIGTERM")]})
    launch(processes, {**job, "resume": True})
    assert_same_weights(tmp_path / "parts", tmp_path / "whole", exactly=True)


def test_a_stop_on_one_rank_stops_all(launch, run_values, tmp_path):
    job = {"config": run_values(max_steps=50), "out": str(tmp_path / "run"), "deeds": [(1, 3, "stop")]}
    states = launch(2, job)
    assert [(state["step"], state["interrupted"], state["stop_reason"]) for state in states] == [
        (3, False, "asked to")
    ] * 2
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000003"]
    assert log(tmp_path / "run")[-1]["kind"] == "validation"


def test_too_many_skipped_steps_leave_a_checkpoint(launch, run_values, tmp_path):
    config = run_values(max_steps=50, checkpoint_every=None, max_skipped_steps=3)
    first, second = launch(2, {"config": config, "out": str(tmp_path / "run"), "deeds": [(1, 2, "spoil")]})
    assert first["error"] == second["error"] == "TrainingError"
    assert first["message"].startswith("3 steps in a row, up to step 5, were skipped")
    kept = list_checkpoints(tmp_path / "run")[-1]
    assert kept.name == "step-00000005"
    assert f"{kept} is saved, and --resume goes on from it" in first["message"]
    assert f"{kept} is saved, and --resume goes on from it" in second["message"]
    load_file(kept / "training.safetensors")


@pytest.mark.parametrize(("processes", "victim"), [(2, 0), pytest.param(4, 2, marks=in_full)])
def test_a_killed_rank_is_an_error_on_the_others(launch, run_values, tmp_path, processes, victim):
    job = {"config": run_values(max_steps=50), "out": str(tmp_path / "run"), "deeds": [(victim, 3, "SIGKILL")]}
    results = launch(processes, job)
    assert results.pop(victim) is None
    assert {result["error"] for result in results} == {"ProcessLostError"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1, but must be at least 2, the number of processes"),
        ({"parallel": "fsdp", "compile": True}, 'compile is true, but must be false where parallel is "fsdp"'),
        ({"device": "cuda:1"}, "device is 'cuda:1', but must be auto, cpu or cuda in 2 processes"),
    ],
    ids=str,
)
def test_unfit_settings_are_refused_on_every_rank(launch, run_values, tmp_path, train, message):
    results = launch(2, {"config": run_values(**train), "out": str(tmp_path / "run")})
    assert [result["error"] for result in results] == ["ConfigError"] * 2
    assert all(message in result["message"] for result in results)


def test_an_error_of_the_first_rank_is_raised_on_all(launch, run_values, tmp_path):
    (tmp_path / "run").write_text("")
    results = launch(2, {"config": run_values(), "out": str(tmp_path / "run")})
    assert [result["message"] for result in results] == [
        f"out is '{tmp_path / 'run'}', but must be a folder, or not exist yet"
    ] * 2
