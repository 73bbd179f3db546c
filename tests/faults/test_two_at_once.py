"""One run at a time in a folder: the second is refused, whoever it is; of one that died nothing stays."""

import os

import pytest
from harness import KILLED, TRAIN, assert_whole_and_goes_on

from sqat.lock import locked
from sqat.train.checkpoints import LOCK_FILE, run_folder


def assert_refused(ended, what):
    assert ended.code == 1
    last = ended.output.strip().splitlines()[-1]
    assert last.startswith(f"error: {what} (process {os.getpid()} on ")
    assert last.endswith("): wait for it, stop it, or choose another folder (--out)")


def held(folder):
    folder.mkdir(exist_ok=True)
    return locked(folder / LOCK_FILE, "it is free")


@pytest.mark.usefixtures("needs_shim")
def test_train(whole, commands):
    sqat = commands("run")
    assert sqat(*TRAIN, action="kill", at=len(whole.changes) // 2).code == KILLED
    before = {path: path.read_bytes() for path in sqat.folder.rglob("*") if path.is_file() and path.name != LOCK_FILE}
    with held(sqat.folder / "run"):  # which the killed one does not hold any more
        assert_refused(sqat(*TRAIN), "a run is going on in run")
        assert_refused(sqat(*TRAIN[:-1]), "a run is going on in run")
    assert all(path.read_bytes() == data for path, data in before.items())
    assert_whole_and_goes_on(sqat, whole)


@pytest.mark.parametrize(
    ("command", "what"),
    [("uptrain anything --tokens 500", "a run is going on"), ("compare plan.yaml", "a comparison is running")],
)
def test_uptrain_and_compare(commands, command, what):
    sqat = commands("run")
    (sqat.folder / "plan.yaml").write_text("{name: x, family: micro, variants: [sqa], reference: sqa}")
    with held(sqat.folder / "out"):
        assert_refused(sqat(*command.split(), "--out", "out", modules=("sqat.convert.uptrain",)), f"{what} in out")


def test_only_the_first_rank_takes_the_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with run_folder(tmp_path):
        assert not (tmp_path / LOCK_FILE).exists()
