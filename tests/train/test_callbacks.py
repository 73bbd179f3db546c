from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqat.errors import ConfigError
from sqat.run_config import RunConfig
from sqat.train import Callback, Trainer, start_run
from sqat.train.callbacks import ProgressBar, TensorBoard, tensorboard_available


def test_tensorboard_gets_what_the_log_gets(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    if not tensorboard_available():
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start_run(run_config(max_steps=3, tensorboard=True), tmp_path / "run").train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert events.Scalars("validation/card_loss")[0].value == pytest.approx(lines[-1]["card_loss"])


@pytest.mark.parametrize("checkpoint_every", [2, None])
def test_tensorboard_of_a_run_that_failed_and_was_resumed(
    run_config: Callable[..., RunConfig], tmp_path: Path, checkpoint_every: int | None
) -> None:
    """Every step once, from the checkpoint's on or from the beginning."""
    if not tensorboard_available():
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Failing(Callback):
        def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
            if trainer.state.step == 4:
                raise RuntimeError("fails")

    config = run_config(max_steps=5, tensorboard=True, evaluate_first=True, checkpoint_every=checkpoint_every)
    with pytest.raises(RuntimeError, match="fails"):
        start_run(config, tmp_path / "run", callbacks=[Failing()]).train()
    start_run(config, tmp_path / "run", resume=True).train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 5]


def test_missing_tensorboard_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the package is missing: pip install tensorboard"):
        TensorBoard(tmp_path)


def test_log_lines_past_the_resumed_step_are_dropped(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(max_steps=3)
    start_run(config, tmp_path / "run").train()
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + '{"kind": "train", "step": 4, "loss": 1}\n{"kind": "tr')  # a crash after the checkpoint
    start_run(config, tmp_path / "run", resume=True).train()
    assert metrics.read_text() == whole


def test_progress_bar_shows_step_loss_and_rate(
    run_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_run(run_config(max_steps=3), tmp_path / "run", callbacks=[ProgressBar()]).train()
    shown = capsys.readouterr().out
    assert "3/3" in shown
    assert "loss" in shown
    assert "tokens/s" in shown
    assert "step 3: validation loss" in shown
