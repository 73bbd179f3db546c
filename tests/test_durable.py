"""Files and folders appear whole; what the system refuses is told with advice."""

import errno
import os

import pytest

from sqat.durable import remove_folder, remove_remains, replace_file, temporary_beside, writing
from sqat.errors import SqatError, StorageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_s_file_goes_when_it_is_written_again(tmp_path):
    if not os.fork():
        with temporary_beside(tmp_path / "x", folder=True) as temporary, temporary_beside(tmp_path / "y"):
            (temporary / "file").touch()
            os._exit(9)
    os.wait()
    assert names(tmp_path) == [".x.sqat-tmp", ".y.sqat-tmp"]
    replace_file(tmp_path / "y", "1")
    assert names(tmp_path) == [".x.sqat-tmp", "y"]
    (tmp_path / ".other.tmp").touch()  # somebody else's
    remove_remains(tmp_path)
    assert names(tmp_path) == [".other.tmp", "y"]


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


def test_nested_errors_name_the_outer_path_and_others_pass():
    with pytest.raises(StorageError, match=r"^a cannot be written: File too large"), writing("a"), writing("a/.b"):
        raise OSError(errno.EFBIG, "x")
    for error in (KeyError, BrokenPipeError):
        with pytest.raises(error, match="x"), writing("a"):
            raise error("x")
