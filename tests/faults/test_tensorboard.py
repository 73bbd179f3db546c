"""Event files for TensorBoard: never a reason to end a run, and no step twice in them."""

import errno

import pytest
from harness import FULL, KILLED, TRAIN, assert_same_run, assert_whole_and_goes_on, litter

pytest.importorskip("tensorboard", reason="tensorboard is missing: make setup")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WITH_EVENTS = (*TRAIN, "--set", "train.tensorboard=true")
MODULES = ("torch.utils.tensorboard",)

# Python that has the event file, and it alone, on a disk that is full.
FULL_DISK = """
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

def full(self, *_):
    raise OSError(28, "No space left on device")

LocalFileSystem.append = full
"""


def steps(sqat):
    events = EventAccumulator(str(sqat.folder / "run" / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_a_full_disk_of_its_own_ends_no_run(whole, commands):
    sqat = commands("run")
    ended = sqat(*WITH_EVENTS, before=FULL_DISK, modules=MODULES)
    assert ended.code == 0, ended.output
    assert ended.output.count("The run goes on without TensorBoard") == 1
    assert "run/tensorboard cannot be written: No space left on device" in " ".join(ended.output.split())
    assert_same_run(sqat.folder / "run", whole.folder / "run")


@pytest.mark.usefixtures("needs_shim")
def test_full_or_killed_at_any_change_to_it(whole, commands):
    """Full is all of the disk from there on: the next checkpoint ends the run."""
    never = commands("never")
    changes = never(*WITH_EVENTS, modules=MODULES).changes
    ours = [i + 1 for i, change in enumerate(changes) if "tensorboard/events" in change]
    written = [n for n in ours if changes[n - 1].startswith("write")]
    assert_same_run(never.folder / "run", whole.folder / "run")
    assert steps(never) == [2, 4, 6, 7]
    for n in ours if FULL else written[2:3]:
        sqat = commands(f"full-at-{n}")
        ended = sqat(*WITH_EVENTS, action="fail", at=n, value=errno.ENOSPC)
        assert ended.code == 1
        assert "No space left on device" in ended.output.strip().splitlines()[-1]  # after the writer's own traceback
        assert_whole_and_goes_on(sqat, whole)
        sqat = commands(f"killed-at-{n}")
        assert sqat(*WITH_EVENTS, action="kill", at=n).code == KILLED
        assert sqat(*WITH_EVENTS).code == 0
        assert_same_run(sqat.folder / "run", whole.folder / "run")
        assert litter(sqat.folder) == []
        assert steps(sqat) == [2, 4, 6, 7]
