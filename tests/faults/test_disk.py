"""A disk that is full, or may not be written: one line that says where and what to do, and nothing lost."""

import errno
import os
import shutil

import pytest
from harness import (
    FREEING,
    FULL,
    TRAIN,
    assert_refused,
    assert_whole_and_goes_on,
    first_change,
    litter,
    newest_is_whole,
)

PARTS = 4 if FULL else 1

# Python that leaves root no more than any owner of files has.
WITHOUT_CAPABILITIES = """
import ctypes
version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert ctypes.CDLL(None).capset(version_3, (ctypes.c_uint32 * 6)()) == 0
"""


@pytest.mark.usefixtures("needs_shim")
@pytest.mark.parametrize("part", range(PARTS))
def test_full_from_any_change_on(whole, commands, part):
    wanting = [i + 1 for i, change in enumerate(whole.changes) if not change.startswith(FREEING)]
    save = first_change(whole, "write", "/.step-00000004")
    newest = 0
    for n in wanting[part::PARTS] if FULL else [save]:
        sqat = commands(f"at-{n}")
        ended = sqat(*TRAIN, action="fail", at=n, value=errno.ENOSPC)
        assert_refused(ended, "No space left on device; free some space there, or choose another folder")
        assert litter(sqat.folder) == []
        step = newest_is_whole(sqat.folder / "run")
        assert not FULL or step >= newest
        newest = step
        if n == save:
            assert step == 3
            assert "run/checkpoints/step-00000004 cannot be written" in ended.output
            assert ended.output.strip().endswith("are whole; --resume goes on from the newest")
        assert_whole_and_goes_on(sqat, whole)
        shutil.rmtree(sqat.folder)


def test_files_of_a_limited_size(whole, commands):
    """The system's own refusal, in the midst of safetensors' writing."""
    sqat, limit = commands("run"), 70_000
    checkpoint = whole.folder / "run" / "checkpoints" / "step-00000007"
    assert (checkpoint / "training.safetensors").stat().st_size > limit
    ended = sqat(*TRAIN, before=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    assert_refused(ended, "File too large; raise the limit on file sizes (ulimit -f)", "checkpoints/step-00000002")
    assert litter(sqat.folder) == []
    assert_whole_and_goes_on(sqat, whole)


@pytest.mark.usefixtures("needs_shim")
def test_read_only_from_some_change_on(whole, commands):
    for n in (1, first_change(whole, "mkdir", "/.step-00000004")) if FULL else (1,):
        sqat = commands(f"at-{n}")
        ended = sqat(*TRAIN, action="fail", at=n, value=errno.EROFS)
        assert_refused(ended, "Read-only file system; choose a folder that you may write to")
        assert_whole_and_goes_on(sqat, whole)


def test_a_folder_without_write_permission_or_below_a_file(commands):
    sqat = commands("run")
    sqat.folder.chmod(0o555)
    ended = sqat(*TRAIN, before=WITHOUT_CAPABILITIES if os.geteuid() == 0 else "")
    sqat.folder.chmod(0o755)
    assert_refused(ended, "Permission denied; choose a folder that you may write to", "run cannot")
    assert [path.name for path in sqat.folder.iterdir()] == ["config.yaml"]
    ended = sqat("train", "config.yaml", "--out", "config.yaml/run")
    assert_refused(ended, "Not a directory; choose another name", "config.yaml/run")
