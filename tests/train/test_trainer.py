from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sqat.errors import CheckpointError, ConfigError, TrainingError
from sqat.run_config import RunConfig
from sqat.train import Callback, Trainer, start_run
from sqat.train.checkpoints import best_checkpoint, latest_checkpoint, list_checkpoints

TIMES = ("tokens_per_second", "data_wait")


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, action: Callable[[Trainer], Any]) -> None:
        self.step, self.action = step, action

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step == self.step:
            self.action(trainer)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def log(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


@pytest.mark.parametrize("mode", ["packed", "rows"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_resumed_run_is_uninterrupted_run_to_the_bit(
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    precision: str,
    shards: int,
) -> None:
    monkeypatch.setattr("sqat.train.trainer.suitable_shards", lambda model: shards)
    monkeypatch.setattr("sqat.cpu.shards.SHARD_TOKENS", 1)
    config = run_config(
        max_steps=7, evaluate_every=3, precision=precision, gradient_accumulation=2, data={"mode": mode}
    )
    whole = start_run(config, tmp_path / "whole")
    whole.train()

    interrupted = start_run(config, tmp_path / "parts", callbacks=[At(4, lambda trainer: trainer.interrupt("test"))])
    interrupted.train()
    assert interrupted.state.step == 4
    torch.rand(13)  # whatever else uses the generator in between
    resumed = start_run(config, tmp_path / "parts", resume=True)
    resumed.train()

    expected, got = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert whole.state == resumed.state
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 7])
def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(
    run_config: Callable[..., RunConfig], tmp_path: Path, stop: int
) -> None:
    """Means over steps on both sides of the stop, and evaluations that were due at it."""
    config = run_config(max_steps=7, evaluate_every=3, log_every=5, checkpoint_every=None, evaluate_first=True)
    start_run(config, tmp_path / "whole").train()
    interrupted = start_run(config, tmp_path / "parts", callbacks=[At(stop, lambda trainer: trainer.interrupt("test"))])
    interrupted.train()
    start_run(config, tmp_path / "parts", resume=True).train()
    assert log(tmp_path / "whole") == log(tmp_path / "parts")


def test_training_lowers_the_loss(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    trainer = start_run(run_config(max_steps=40, learning_rate=1e-2, evaluate_first=True), tmp_path / "run")
    after = trainer.train()
    before, *_, last = [record for record in log(tmp_path / "run") if record["kind"] == "validation"]
    assert after is not None
    assert last["loss"] == after.loss < 0.9 * before["loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave(run_config: Callable[..., RunConfig], tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    send = At(2, lambda trainer: os.kill(os.getpid(), number))
    trainer = start_run(run_config(), tmp_path / "run", callbacks=[send])
    trainer.train()
    assert trainer.interrupted
    assert trainer.stop_reason == f"{number.name} received"
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]
    assert signal.getsignal(number) == before


def test_epochs_cover_every_target_once(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    trainer = start_run(run_config(max_steps=None, epochs=2, gradient_accumulation=3), tmp_path / "run")
    trainer.train()
    tokens = trainer.batches.tokens
    assert trainer.state.data == (2, 0)
    # Every token but the last of a document has a next one, wherever rows are cut.
    assert trainer.state.tokens == 2 * (tokens.num_tokens - len(tokens))


def test_token_limit_stops_and_evaluates(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    trainer = start_run(run_config(max_tokens=200), tmp_path / "run")
    assert trainer.train() is not None
    assert trainer.state.step == 2
    assert trainer.stop_reason == "token limit 200 reached"
    assert not trainer.state.finished


def test_a_run_that_a_token_limit_stopped_stays_as_it_is(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(max_tokens=200)
    first = start_run(config, tmp_path / "run")
    first.train()
    written = log(tmp_path / "run")
    again = start_run(config, tmp_path / "run", resume=True)
    again.train()
    assert (again.state.step, again.state.tokens) == (first.state.step, first.state.tokens)
    assert log(tmp_path / "run") == written


def test_rotation_keeps_newest_and_best(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    def spoil(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.embedding.weight.normal_(std=9.0)

    config = run_config(max_steps=6, evaluate_every=1, checkpoint_every=1, keep_checkpoints=2)
    start_run(config, tmp_path / "run", callbacks=[At(3, spoil)]).train()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"step-0000000{n}" for n in (2, 5, 6)]
    assert best_checkpoint(tmp_path / "run").name == "step-00000002"


def test_a_new_best_is_saved_between_checkpoints(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    start_run(run_config(max_steps=5, evaluate_every=3, checkpoint_every=None), tmp_path / "run").train()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000003", "step-00000005"]


def test_infinite_weights_are_not_saved(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    trainer = start_run(run_config(max_steps=2, log_every=10), tmp_path / "run")
    with torch.no_grad():
        trainer.model.embedding.weight[7, 11] = float("inf")
    with pytest.raises(TrainingError, match="the weights are not finite after step 0"):
        trainer.save()
    assert latest_checkpoint(tmp_path / "run") is None


def test_a_finished_run_stays_as_it_is(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(max_steps=3)
    first = start_run(config, tmp_path / "run")
    first.train()
    written = log(tmp_path / "run")
    again = start_run(config, tmp_path / "run", resume=True)
    assert again.train() is None
    assert log(tmp_path / "run") == written
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(again).values(), strict=True))


@pytest.mark.parametrize(
    ("checkpoint_every", "message"),
    [
        (2, "the weights are not finite after step 4"),
        (
            None,
            "the last 2 steps, up to step 5, .* the weights are not finite after step 5; earlier checkpoints are kept",
        ),
    ],
)
def test_weights_gone_bad_end_the_run_and_are_not_saved(
    run_config: Callable[..., RunConfig], tmp_path: Path, checkpoint_every: int | None, message: str
) -> None:
    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.embedding.weight.fill_(float("nan"))

    config = run_config(checkpoint_every=checkpoint_every, max_skipped_steps=2)
    trainer = start_run(config, tmp_path / "run", callbacks=[At(3, poison)])
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    kept = latest_checkpoint(tmp_path / "run")
    assert kept is None or kept.name == "step-00000002"


@pytest.mark.parametrize("every", [None, 2])
def test_an_evaluation_that_fails_loses_no_steps(
    run_config: Callable[..., RunConfig], tmp_path: Path, every: int | None
) -> None:
    config = run_config(max_steps=3, evaluate_every=every, checkpoint_every=every)
    trainer = start_run(config, tmp_path / "run")
    trainer.measure = lambda validation: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryError):
        trainer.train()
    assert latest_checkpoint(tmp_path / "run").name == f"step-0000000{every or 3}"
    resumed = start_run(config, tmp_path / "run", resume=True)
    resumed.train()
    start_run(config, tmp_path / "whole").train()
    assert log(tmp_path / "run") == log(tmp_path / "whole")


def test_gradient_checkpointing_changes_nothing(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    runs = []
    for recompute in (False, True):
        trainer = start_run(run_config(gradient_checkpointing=recompute), tmp_path / str(recompute))
        trainer.train()
        runs.append(weights(trainer))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-5, atol=1e-6)


def test_folder_of_another_run_is_refused(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    start_run(run_config(max_steps=1), tmp_path / "run").train()
    with pytest.raises(ConfigError, match=r"holds a run already: resume it \(--resume\)"):
        start_run(run_config(max_steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train.max_steps is 2, but the run in .* has 1"):
        start_run(run_config(max_steps=2), tmp_path / "run", resume=True)
    start_run(run_config(max_steps=1, log_every=3), tmp_path / "run", resume=True)  # changes nothing that is computed
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be a folder"):
        start_run(run_config(), tmp_path / "file")


def test_damaged_state_names_the_file(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(max_steps=1)
    start_run(config, tmp_path / "run").train()
    tensors = latest_checkpoint(tmp_path / "run") / "training.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"training\.safetensors is damaged or truncated"):
        start_run(config, tmp_path / "run", resume=True)
    (tensors.parent / "checksums.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"training\.safetensors is missing, damaged or truncated"):
        start_run(config, tmp_path / "run", resume=True)


def test_missing_gpu_is_named(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(ConfigError, match="device is 'cuda', but no GPU is available"):
        start_run(run_config(device="cuda"), tmp_path / "run")


def test_a_callback_whose_end_fails_leaves_no_other_out(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    ended = []

    class Ends(Callback):
        def on_end(self, trainer: Trainer) -> None:
            ended.append(self)
            raise OSError("no end")

    callbacks = [Ends(), Ends()]
    trainer = start_run(run_config(max_steps=1), tmp_path / "run", callbacks=callbacks)
    with pytest.raises(OSError, match="no end"):
        trainer.train()
    assert sorted(map(id, ended)) == sorted(map(id, callbacks))
    start_run(run_config(max_steps=1), tmp_path / "run", resume=True)  # the folder is free again
    assert list_checkpoints(tmp_path / "run")
