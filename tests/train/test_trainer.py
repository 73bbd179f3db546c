"""Runs: resumed to the bit, stopped, evaluated, and refused by name."""

import os
import re
import signal
from unittest.mock import Mock

import pytest
import torch

from sqat.checkpoint import load_model
from sqat.errors import CheckpointError, ConfigError, TrainingError
from sqat.train import Callback, Trainer
from sqat.train.checkpoints import best_checkpoint, list_checkpoints


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def checkpoints(run):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(run)]


@pytest.mark.parametrize(
    ("mode", "precision", "shards"),
    [("packed", "float32", 1), ("rows", "bf16", 1), ("packed", "bf16", 2), ("rows", "float32", 2)],
)
def test_resumed_run_is_uninterrupted_run_to_the_bit(trained, log, interrupt, monkeypatch, mode, precision, shards):
    monkeypatch.setattr("sqat.train.step.suitable_shards", lambda model: shards)
    monkeypatch.setattr("sqat.cpu.shards.SHARD_TOKENS", 1)
    settings = {"evaluate_every": 3, "precision": precision, "gradient_accumulation": 2, "data": {"mode": mode}}
    whole = trained("whole", **settings)
    interrupted = trained("parts", callbacks=[interrupt(4)], **settings)
    assert interrupted.state.step == 4
    torch.rand(13)  # whatever else uses the generator in between
    resumed = trained("parts", resume=True, **settings)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert whole.state == resumed.state
    assert log("whole") == log("parts")


def test_training_lowers_the_loss(start, log):
    after = start(max_steps=40, learning_rate=1e-2, evaluate_first=True).train()
    before, *_, last = log(kind="validation")
    assert last["loss"] == after.loss < 0.9 * before["loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave(trained, at, tmp_path, number):
    before = signal.getsignal(number)
    trainer = trained(callbacks=[at(2, lambda trainer: os.kill(os.getpid(), number))])
    assert trainer.interrupted
    assert trainer.stop_reason == f"{number.name} received"
    assert checkpoints(tmp_path / "run") == [2]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 8}, "warmup_steps is 8, but the run has 7 steps: the learning rate never reaches its peak"),
        ({"warmup_steps": 6, "max_tokens": 150}, "warmup_steps is 6, but the run has 2 steps: the learning rate never"),
        ({"max_tokens": 150}, r"max_tokens 150 ends the run at about step 2 of a schedule of 7, .* set max_steps to 2"),
        ({"warmup_steps": 6, "max_tokens": 100_000}, None),
        ({"warmup_steps": 7}, None),  # the last step is the peak
        ({"max_tokens": 150, "min_learning_rate": 1e-3, "learning_rate": 1e-3}, None),  # a constant rate
    ],
)
def test_schedules_that_miss_their_point_are_warned_of(start, caplog, settings, message):
    start(**settings)
    found = [text for text in caplog.messages if "warmup_steps" in text or "max_tokens" in text]
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


def test_a_compiled_model_is_trained(start, tmp_path):
    first = start(max_steps=2)
    trainer = Trainer(torch.compile(first.model), first.batches, first.config, out=tmp_path / "again")
    trainer.train()
    assert load_model(tmp_path / "again" / "checkpoints" / "step-00000002").config == first.model.config


def test_epochs_cover_every_target_once(trained):
    trainer = trained(max_steps=None, epochs=2, gradient_accumulation=3, data={"limit": 7})
    tokens = trainer.batches.tokens
    assert trainer.state.data == (2, 0)
    # Every token but the last of a document has a next one, wherever rows are cut.
    assert trainer.state.tokens == 2 * (tokens.num_tokens - len(tokens))


def test_a_token_limit_stops_the_run_for_good(start, trained, log):
    first = start(max_tokens=200)
    assert first.train() is not None
    assert (first.state.step, first.state.finished) == (2, False)
    assert first.stop_reason == "token limit 200 reached"
    written = log()
    again = trained(max_tokens=200, resume=True)
    assert (again.state.step, again.state.tokens) == (2, first.state.tokens)
    assert log() == written


def test_rotation_keeps_newest_and_best(start, at, tmp_path):
    def spoil(trainer):
        with torch.no_grad():
            trainer.model.embedding.weight.normal_(std=9.0)

    start(max_steps=6, evaluate_every=1, checkpoint_every=1, keep_checkpoints=2, callbacks=[at(3, spoil)]).train()
    assert checkpoints(tmp_path / "run") == [2, 5, 6]
    assert best_checkpoint(tmp_path / "run").name == "step-00000002"


def test_a_new_best_is_saved_between_checkpoints_and_a_finished_run_stays_as_it_is(start, trained, log, tmp_path):
    settings = {"max_steps": 5, "evaluate_every": 3, "checkpoint_every": None}
    first = trained(**settings)
    assert checkpoints(tmp_path / "run") == [3, 5]
    written = log()
    again = start(resume=True, **settings)
    assert again.train() is None
    assert log() == written
    torch.testing.assert_close(weights(again), weights(first), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("value", "checkpoint_every", "message", "kept"),
    [
        ("inf", 2, "the weights are not finite after step 4", [2]),
        ("nan", None, "the weights are not finite after step 5; earlier checkpoints are kept", []),
    ],
)
def test_inf_and_nan_weights_end_the_run_and_are_not_saved(start, at, tmp_path, value, checkpoint_every, message, kept):
    def poison(trainer):
        with torch.no_grad():
            trainer.model.embedding.weight[7:].fill_(float(value))

    trainer = start(checkpoint_every=checkpoint_every, max_skipped_steps=2, callbacks=[at(3, poison)])
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert checkpoints(tmp_path / "run") == kept


@pytest.mark.parametrize("every", [None, 2])
def test_an_evaluation_that_fails_loses_no_steps(start, log, tmp_path, every):
    settings = {"max_steps": 3, "evaluate_every": every, "checkpoint_every": every}
    trainer = start(**settings)
    trainer.measure = Mock(side_effect=MemoryError)
    with pytest.raises(MemoryError):
        trainer.train()
    assert checkpoints(tmp_path / "run") == [every or 3]
    start(resume=True, **settings).train()
    start("whole", **settings).train()
    assert log("run") == log("whole")


def test_the_folder_of_another_run_or_a_damaged_one_is_refused(start, tmp_path):
    start(max_steps=1).train()
    with pytest.raises(ConfigError, match=r"holds a run already: resume it \(--resume\)"):
        start(max_steps=1)
    with pytest.raises(ConfigError, match=r"train.max_steps is 2, but the run in .* has 1"):
        start(max_steps=2, resume=True)
    start(max_steps=1, log_every=3, resume=True)  # changes nothing that is computed
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be a folder"):
        start("file")
    tensors = list_checkpoints(tmp_path / "run")[-1] / "training.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    (tensors.parent / "checksums.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"training\.safetensors is missing, damaged or truncated"):
        start(max_steps=1, resume=True)


def test_a_missing_gpu_is_named(start):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(ConfigError, match="device is 'cuda', but no GPU is available"):
        start(device="cuda")


def test_every_callback_ends_and_the_folder_is_free_although_one_fails(start, tmp_path):
    callbacks = [Mock(Callback, on_end=Mock(side_effect=OSError("no end"))) for _ in range(2)]
    with pytest.raises(OSError, match="no end"):
        start(max_steps=1, callbacks=callbacks).train()
    assert [callback.on_end.called for callback in callbacks] == [True, True]
    start(max_steps=1, resume=True)
    assert checkpoints(tmp_path / "run") == [1]
