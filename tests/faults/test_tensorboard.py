"""Event files for TensorBoard: never a reason to end a run."""

import pytest
from harness import TRAIN, assert_same_run

pytest.importorskip("tensorboard", reason="tensorboard is missing: make setup")

WITH_EVENTS = (*TRAIN, "--set", "train.tensorboard=true")
MODULES = ("torch.utils.tensorboard",)

# Python that has the event file, and it alone, on a disk that is full.
FULL_DISK = """
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

def full(self, *_):
    raise OSError(28, "No space left on device")

LocalFileSystem.append = full
"""


def test_a_full_disk_of_its_own_ends_no_run(whole, commands):
    sqat = commands("run")
    ended = sqat(*WITH_EVENTS, before=FULL_DISK, modules=MODULES)
    assert ended.code == 0, ended.output
    assert ended.output.count("The run goes on without TensorBoard") == 1
    assert "run/tensorboard cannot be written: No space left on device" in " ".join(ended.output.split())
    assert_same_run(sqat.folder / "run", whole.folder / "run")
