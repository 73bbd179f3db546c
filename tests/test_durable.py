"""Hidden names: there while their writer lives, removed by the next one when it was killed."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from sqat.durable import make_folder, remove_folder, remove_remains, replace_file, temporary_beside, writing
from sqat.errors import SqatError, StorageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("folder", [False, True])
def test_files_of_a_live_writer_stay(tmp_path, folder):
    with temporary_beside(tmp_path / "x", folder=folder) as temporary:
        remove_remains(tmp_path)
        replace_file(tmp_path / "other", "1")
        assert temporary.exists()
        assert temporary.is_dir() == folder
    assert names(tmp_path) == ["other"]


def test_the_next_writer_removes_files_of_a_killed_one(tmp_path):
    if not os.fork():
        with temporary_beside(tmp_path / "x", folder=True) as temporary, temporary_beside(tmp_path / "y"):
            (temporary / "file").touch()
            os._exit(9)
    os.wait()
    assert len(names(tmp_path)) == 2
    (tmp_path / ".other.tmp").touch()  # somebody else's
    replace_file(tmp_path / "z", "1")
    assert names(tmp_path) == [".other.tmp", "z"]


def test_many_writers_at_once(tmp_path):
    """Each removes remains while others make theirs."""

    def write(text):
        for _ in range(50):
            replace_file(tmp_path / "x", text * 100)
            assert len({*(tmp_path / "x").read_text(encoding="utf-8")}) == 1

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abé"))
    assert names(tmp_path) == ["x"]


def test_the_names_of_new_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("sqat.durable.flush", flushed.append)
    (tmp_path / "a").mkdir()
    make_folder(tmp_path / "a" / "b" / "c")
    assert {*flushed} == {tmp_path / "a", tmp_path / "a" / "b"}
    make_folder(tmp_path / "a" / "b" / "c")  # is there, and its name on the disk
    assert len(flushed) == 2


def test_a_folder_is_renamed_before_it_is_removed(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").touch()
    seen = []
    monkeypatch.setattr("sqat.durable.shutil.rmtree", lambda path, **_: seen.append((path.name, names(path))))
    remove_folder(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert [inside for _, inside in seen] == [["file"]]
    remove_folder(tmp_path / "x")  # is not there


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device; free some space there, or choose another folder"),
        (OSError(errno.EROFS, "x"), "Read-only file system; choose a folder that you may write to"),
        (OSError(errno.EIO, "Input/output error", "name"), r"\[Errno 5\] Input/output error: 'name'$"),
    ],
)
def test_system_errors_become_storage_errors_with_advice(error, message):
    with pytest.raises(StorageError, match=f"^a/b cannot be written: {message}") as caught, writing("a/b"):
        raise error
    assert isinstance(caught.value, SqatError)
    assert isinstance(caught.value, OSError)


def test_nested_errors_name_the_outer_path_and_a_name_that_is_not_utf8_is_refused():
    with pytest.raises(StorageError, match=r"^a cannot be written: File too large"), writing("a"), writing("a/.b"):
        raise OSError(errno.EFBIG, "x")
    with pytest.raises(StorageError, match=r"^'a\\udcff' cannot be written: its name is no UTF-8"), writing("a\udcff"):
        "a\udcff".encode()
    with pytest.raises(UnicodeEncodeError), writing("a"):  # it was not the name
        "a\udcff".encode()
    for error in (KeyError, BrokenPipeError):  # other errors pass
        with pytest.raises(error, match="x"), writing("a"):
            raise error("x")
