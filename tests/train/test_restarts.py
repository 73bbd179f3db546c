"""What torchrun starts again goes on unasked with the run that it began, and with no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sqat.errors import ConfigError
from sqat.run_config import RunConfig
from sqat.train import Callback, Trainer, start_run
from sqat.train.checkpoints import list_checkpoints
from sqat.train.run import JOB_FILE

REFUSED = r"holds a run already: resume it \(--resume\)"


class Stop(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step == 2:
            trainer.interrupt("a test")


@pytest.fixture
def begin(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Trainer]:
    """`begin("mine", 1)`: as torchrun's job of that name does at its first restart; `None`: without torchrun."""

    def start(job: str | None, restarts: int = 0, *, resume: bool = False) -> Trainer:
        for name, value in (("TORCHELASTIC_RUN_ID", job), ("TORCHELASTIC_RESTART_COUNT", job and str(restarts))):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return start_run(run_config(max_steps=3), tmp_path / "run", resume=resume, callbacks=[Stop()])

    return start


@pytest.mark.parametrize("name", ["mine", "none"])
def test_a_job_goes_on_with_its_run_time_after_time(begin, name):
    begin(name).train()
    for restarts in (1, 2):
        assert begin(name, restarts).state.step == 2


def test_one_that_was_killed_before_its_first_checkpoint_begins_again(begin, tmp_path):
    begin("mine")
    begin("mine", 1).train()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002"]


def test_one_that_was_asked_to_resume_goes_on(begin):
    begin(None).train()
    assert begin("mine", resume=True).state.step == 2
    assert begin("mine", 1).state.step == 2


@pytest.mark.parametrize("former", [None, "another", "mine"])  # a name may be used twice
def test_a_refusal_is_followed_by_refusals(begin, former):
    begin(former).train()
    for restarts in (0, 1, 2):
        with pytest.raises(ConfigError, match=REFUSED):
            begin("mine", restarts)


@pytest.mark.parametrize(("former", "name"), [("another", "mine"), ("none", "none")])
def test_so_is_one_by_a_run_that_has_ended_before_the_restart(begin, monkeypatch, former, name):
    begin(former).train()  # while which the first start was refused, and left no trace
    monkeypatch.setattr(os, "getppid", lambda: 7)  # another launcher's process
    with pytest.raises(ConfigError, match=REFUSED):
        begin(name, 1)


def test_a_damaged_signature_is_that_of_nobody(begin, tmp_path):
    begin("mine").train()
    (tmp_path / "run" / JOB_FILE).write_bytes(b"\xff" * 31)
    with pytest.raises(ConfigError, match=REFUSED):
        begin("mine", 1)


def test_without_torchrun_nothing_is_signed(begin, tmp_path):
    begin(None).train()
    assert not (tmp_path / "run" / JOB_FILE).exists()
