"""Lists of checksums: whatever changes in a folder that has one is seen, and what others made is left alone."""

import re
import shutil
import subprocess

import pytest

from sqat.checksums import MANIFEST, check_files, renew_checksums, write_checksums
from sqat.errors import CheckpointError, DataError

CONTENT = {"a.json": b"{}", "below/b.bin": bytes(range(251)), "empty": b"", "naïve name.txt": b"text\n"}


@pytest.fixture
def folder(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_checksums(tmp_path)
    return tmp_path


def test_an_untouched_folder_and_one_without_a_list(folder, tmp_path):
    check_files(folder)
    check_files(folder, ["a.json", "not listed"])
    write_checksums(folder)  # does not list itself
    assert MANIFEST not in (folder / MANIFEST).read_text()
    check_files(folder)
    (folder / MANIFEST).unlink()
    (folder / "a.json").unlink()
    check_files(folder)
    check_files(folder, ["a.json"])
    (tmp_path / "empty folder").mkdir()
    write_checksums(tmp_path / "empty folder")
    check_files(tmp_path / "empty folder")


@pytest.mark.parametrize("name", [name for name, content in CONTENT.items() if content])
def test_any_flipped_byte_names_its_file(folder, flip_bytes, name):
    for _ in flip_bytes(folder / name):
        with pytest.raises(CheckpointError, match=re.escape(f"{folder / name} is damaged or truncated: its SHA-256")):
            check_files(folder)
        check_files(folder, [other for other in CONTENT if other != name])
    check_files(folder)


def test_a_missing_file_is_named(folder):
    (folder / "below" / "b.bin").unlink()
    with pytest.raises(DataError, match=rf"below/b\.bin is missing, although {MANIFEST} lists it"):
        check_files(folder, error=DataError)
    check_files(folder, ["a.json"])


def test_comments_are_passed_over(folder):
    """The first version wrote one."""
    (folder / MANIFEST).write_text(f"# SHA-256 of the lines below: {'0' * 64}\n" + (folder / MANIFEST).read_text())
    check_files(folder)


def test_files_elsewhere_are_not_touched_and_malformed_lines_quoted(folder):
    elsewhere = [f"{'0' * 64}  {name}" for name in ("/etc/hostname", "../outside", "below/../../outside")]
    for line in (*elsewhere, "nonsense", f"{'0' * 64} a.json", f"{'0' * 64}  "):
        (folder / MANIFEST).write_text(line + "\n")
        message = re.escape(f"{MANIFEST} has the line {line!r}, but must have a SHA-256 and a file in its own folder")
        with pytest.raises(CheckpointError, match=message):
            check_files(folder)


class TestReplacing:
    def test_the_sums_of_other_files_stay(self, folder):
        (folder / "empty").write_bytes(b"damage")
        (folder / "a.json").write_bytes(b"[]")
        (folder / "new").write_bytes(b"1")
        renew_checksums(folder, ["a.json", "new"])
        check_files(folder, ["a.json", "new", "below/b.bin"])
        with pytest.raises(CheckpointError, match="empty is damaged"):  # and is not taken for what was written
            check_files(folder)
        (folder / "new").write_bytes(b"2")
        with pytest.raises(CheckpointError, match="new is damaged"):
            check_files(folder, ["new"])

    def test_a_folder_without_a_list_gets_none(self, folder):
        (folder / MANIFEST).unlink()
        renew_checksums(folder, ["a.json"])
        assert not (folder / MANIFEST).exists()
        write_checksums(folder, ["a.json"])
        assert (folder / MANIFEST).exists()


def test_sha256sum_reads_it(folder):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not here")
    command = ["sha256sum", "--check", "--strict", MANIFEST]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
    (folder / "a.json").write_bytes(b"[]")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 1
    assert "a.json: FAILED" in result.stdout
