"""Folders are there whole or not at all, whatever goes wrong and wherever a writer is killed."""

import os
import shutil
import stat
import sys

import pytest

from sqat.checksums import MANIFEST, check_files
from sqat.errors import CheckpointError
from sqat.store import write_files, write_folder

CHANGES = ("open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp")
KILLED, ALIVE, FAILED = 9, 0, 1


def survives(function, n):
    """Run `function` in a forked process that dies, with nothing cleaned up, just before its n-th change to the file
    system; whether it lived to the end.
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (KILLED, ALIVE)
        return status == ALIVE
    seen = 0

    def count(event, _):
        nonlocal seen
        seen += event in CHANGES
        if seen == n:
            os._exit(KILLED)

    status = FAILED
    try:
        sys.addaudithook(count)
        function()
        status = ALIVE
    finally:
        os._exit(status)


def write(folder, version):
    with write_folder(folder) as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text(version)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != MANIFEST}


def of(version):
    return dict.fromkeys(("a", "b"), version)


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def test_a_folder_is_made_with_its_parents_by_the_umask_and_replaced_whole(tmp_path):
    folder = tmp_path / "runs" / "first" / "model"
    before = os.umask(0o027)
    try:
        write(folder, "old")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    (folder / "extra").write_text("goes")
    write(folder, "new")
    assert content(folder) == of("new")
    assert names(folder.parent) == {"model"}


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "first", tmp_path / "latest"
    write(target, "old")
    link.symlink_to(target)
    for version in ("newer", "newest"):
        write(link, version)
        assert content(target) == content(link) == of(version)
    assert link.is_symlink()
    assert names(tmp_path) == {"first", "latest"}


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_writer_changes_nothing(folder, exists, error):
    if exists:
        write(folder, "old")

    def fail():
        with write_folder(folder) as temporary:
            (temporary / "a").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert names(folder.parent) == ({"model"} if exists else set())
    assert not exists or content(folder) == of("old")


class TestChecksums:
    def test_every_folder_lists_its_files(self, folder):
        with write_folder(folder) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / "c").write_text("new")
            (temporary / "a").write_text("new")
        listed = [line.split("  ")[1] for line in (folder / MANIFEST).read_text().splitlines()]
        assert listed == ["a", "below/c"]
        (folder / "below" / "c").write_text("nex")
        with pytest.raises(CheckpointError, match=r"model/below/c is damaged"):
            check_files(folder)

    def test_replacing_a_file_keeps_the_checksums_of_others(self, folder):
        write(folder, "old")
        with write_files(folder) as temporary:
            (temporary / "b").write_text("new")
        assert content(folder) == {"a": "old", "b": "new"}
        check_files(folder)
        for damaged in ("b", "a"):
            (folder / damaged).write_text("bad")
            with pytest.raises(CheckpointError, match=rf"model/{damaged} is damaged"):
                check_files(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("before", ["nothing", "old", "moved aside"])
def test_a_writer_killed_at_any_change_leaves_the_old_folder_or_the_new(folder, before):
    found, alive = [], False
    while not alive:
        shutil.rmtree(folder.parent)
        folder.parent.mkdir()
        if before != "nothing":
            write(folder, "old")
        if before == "moved aside":  # by an earlier death, between the two renames
            folder.rename(folder.with_name(".model.previous"))
        alive = survives(lambda: write(folder, "new"), len(found) + 1)
        there = folder if folder.exists() else folder.with_name(".model.previous")  # killed between two renames
        version = content(there)["a"] if there.exists() else "nothing"
        assert version == "nothing" or content(there) == of(version)
        found.append(version)
        write(folder, "next")  # whatever lies about does not stop the next writer
        assert content(folder) == of("next")
        assert ".model.previous" not in names(folder.parent)
    first = "nothing" if before == "nothing" else "old"
    assert found == [first] * found.count(first) + ["new"] * found.count("new")
    assert {*found} == {first, "new"}


def test_folders_above_a_failed_one_are_removed(tmp_path):
    with pytest.raises(ValueError, match="failed"), write_folder(tmp_path / "new" / "deep" / "model"):
        raise ValueError("failed")
    assert not [*tmp_path.iterdir()]
