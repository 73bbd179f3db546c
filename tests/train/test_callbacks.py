"""The progress bar, metrics.jsonl and TensorBoard."""

import json
from unittest.mock import Mock

import pytest

from sqat.train.callbacks import ProgressBar


@pytest.fixture
def events(tmp_path):
    """What TensorBoard reads of the run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read():
        found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        found.Reload()
        return found

    return read


def test_tensorboard_has_the_metrics_of_the_log(start, log, events):
    start(max_steps=3, tensorboard=True).train()
    losses = events().Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([line["loss"] for line in log(kind="train")])
    (*_, entropy) = events().Scalars("validation/router_entropy")
    assert entropy.value == pytest.approx(log(kind="validation")[-1]["router_entropy"])


@pytest.mark.parametrize("checkpoint_every", [2, None])
def test_tensorboard_has_every_step_of_a_resumed_run_once(start, at, events, checkpoint_every):
    """From the checkpoint's step on, or from the beginning."""
    settings = {"max_steps": 5, "tensorboard": True, "evaluate_first": True, "checkpoint_every": checkpoint_every}
    with pytest.raises(RuntimeError, match="fails"):
        start(callbacks=[at(4, Mock(side_effect=RuntimeError("fails")))], **settings).train()
    start(resume=True, **settings).train()
    assert [event.step for event in events().Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events().Scalars("validation/loss")] == [0, 5]


def test_a_resumed_run_drops_damaged_and_later_log_lines(start, tmp_path):
    start(max_steps=3).train()
    metrics = tmp_path / "run" / "metrics.jsonl"
    first, *others = metrics.read_bytes().splitlines(keepends=True)
    later = json.dumps({"kind": "train", "step": 4, "loss": 1}).encode()
    metrics.write_bytes(b"\xff" + first[1:] + b"".join(others) + later + b'\n{"kind": "tr')  # a crash truncated it
    start(max_steps=3, resume=True).train()
    assert metrics.read_bytes() == b"".join(others)


@pytest.mark.parametrize("dumb", [False, True])
def test_without_a_terminal_every_log_line_is_a_line(start, capsys, monkeypatch, dumb):
    if dumb:  # a terminal that cannot move its cursor
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
    start(max_steps=5, log_every=2, callbacks=[ProgressBar()]).train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" · ")[0] for line in lines[:3]] == ["step 2 of 5", "step 4 of 5", "step 5 of 5"]
    assert all("tokens/s" in line for line in lines[:3])
    assert lines[3].startswith("step 5: validation loss")


def test_progress_bar_shows_step_loss_and_rate(start, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal does
    start(max_steps=3, callbacks=[ProgressBar()]).train()
    shown = capsys.readouterr().out
    for text in ("3/3", "loss", "tokens/s", "step 3: validation loss"):
        assert text in shown
