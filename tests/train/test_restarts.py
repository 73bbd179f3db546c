"""What torchrun starts again goes on unasked."""

import pytest

from sqat.errors import ConfigError
from sqat.train.checkpoints import list_checkpoints


@pytest.fixture
def begin(start, interrupt, monkeypatch):
    """`begin(1)`: as a job does at its first restart by torchrun. The run is interrupted after step 2."""

    def begin(restarts=0):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        return start(max_steps=3, callbacks=[interrupt(2)])

    return begin


def test_every_restart_of_a_job_resumes_its_run(begin):
    begin().train()
    for restarts in (1, 2):
        assert begin(restarts).state.step == 2
    with pytest.raises(ConfigError, match=r"holds a run already: resume it \(--resume\)"):
        begin()


def test_a_job_killed_before_its_first_checkpoint_begins_again(begin, tmp_path):
    begin()
    begin(1).train()
    assert len(list_checkpoints(tmp_path / "run")) == 1
