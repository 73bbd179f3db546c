"""A training run that is killed, wherever it is, and goes on by the same command comes to the same as any other."""

import random
import shutil

import pytest
from harness import FULL, KILLED, TRAIN, assert_whole_and_goes_on, newest_is_whole

PARTS = 8 if FULL else 1  # of the work, so that several processes share it
CHANGES = None if FULL else 2  # to the disk at which runs are killed; `None`: at all of them


@pytest.mark.usefixtures("needs_shim")
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_change_to_the_disk(whole, commands, part):
    """From the first write of the tokenizer to the last of the last checkpoint: a write is half done, all else not."""
    kinds = {change.split()[0] for change in whole.changes}
    assert {"write", "fsync", "rename", "open", "mkdir", "unlink", "rmdir"} <= kinds
    for file in ("tokens.bin", "tokenizer.json", "step-00000006", "config.yaml", "metrics.jsonl"):
        assert any(change.startswith("write ") and file in change for change in whole.changes), file
    numbers = list(range(1, len(whole.changes) + 1))
    numbers = numbers if CHANGES is None else sorted(random.Random(7).sample(numbers, CHANGES))
    newest = 0
    for n in numbers[part::PARTS]:
        sqat = commands(f"at-{n}")
        assert sqat(*TRAIN, action="kill", at=n).code == KILLED
        step = newest_is_whole(sqat.folder / "run")
        assert step >= newest  # whatever was written stays
        newest = step
        assert_whole_and_goes_on(sqat, whole)
        shutil.rmtree(sqat.folder)
    assert not FULL or newest >= 4
