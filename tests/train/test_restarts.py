"""What torchrun starts again goes on unasked with the run that it began, and with no other."""

import os

import pytest

from sqat.errors import ConfigError
from sqat.train.checkpoints import list_checkpoints
from sqat.train.run import JOB_FILE

REFUSED = r"holds a run already: resume it \(--resume\)"


@pytest.fixture
def begin(start, interrupt, monkeypatch):
    """`begin("mine", 1)`: as torchrun's job of that name does at its first restart; `None`: without torchrun. The run
    is interrupted after step 2.
    """

    def begin(job, restarts=0, *, resume=False):
        for name, value in (("TORCHELASTIC_RUN_ID", job), ("TORCHELASTIC_RESTART_COUNT", str(restarts))):
            monkeypatch.delenv(name, raising=False)
            if job is not None:
                monkeypatch.setenv(name, value)
        return start(max_steps=3, resume=resume, callbacks=[interrupt(2)])

    return begin


@pytest.mark.parametrize("name", ["mine", "none"])
def test_every_restart_of_a_job_resumes_its_run(begin, name):
    begin(name).train()
    for restarts in (1, 2):
        assert begin(name, restarts).state.step == 2


def test_a_job_killed_before_its_first_checkpoint_begins_again(begin, tmp_path):
    begin("mine")
    begin("mine", 1).train()
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_a_job_asked_to_resume_goes_on_at_every_restart(begin):
    begin(None).train()
    assert begin("mine", resume=True).state.step == 2
    assert begin("mine", 1).state.step == 2


@pytest.mark.parametrize("former", [None, "another", "mine"])  # a name may be used twice
def test_restarts_of_a_refused_job_are_refused(begin, former):
    begin(former).train()
    for restarts in (0, 1, 2):
        with pytest.raises(ConfigError, match=REFUSED):
            begin("mine", restarts)


@pytest.mark.parametrize(("former", "name"), [("another", "mine"), ("none", "none")])
def test_a_restart_of_a_refused_job_is_refused_when_the_other_run_has_ended(begin, monkeypatch, former, name):
    begin(former).train()  # while which the first start was refused, and left no trace
    monkeypatch.setattr(os, "getppid", lambda: 7)  # another launcher's process
    with pytest.raises(ConfigError, match=REFUSED):
        begin(name, 1)


def test_a_damaged_job_file_or_none_belongs_to_no_job(begin, tmp_path):
    begin(None).train()
    job = tmp_path / "run" / JOB_FILE
    assert not job.exists()
    job.write_bytes(b"\xff" * 31)
    with pytest.raises(ConfigError, match=REFUSED):
        begin("mine", 1)
