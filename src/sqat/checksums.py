"""Checksums of a folder's files, so that damage is seen when they are read.

`checksums.sha256` has a line a file, as `sha256sum` writes it and `sha256sum --check` reads it. Its first line, a
comment there, has the checksum of the others, so that damage to this file is not taken for damage to those it lists.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sqat.durable import replace_file
from sqat.errors import CheckpointError, SqatError

MANIFEST = "checksums.sha256"
_HEAD = "# SHA-256 of the lines below: "
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_LARGEST = 1 << 24  # bytes; more is no list of a folder's files


def write_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """List files in the folder's manifest: `names`, or all that are there, those of folders in it too."""
    if names is None:
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = [name for path in paths if (name := path.relative_to(folder).as_posix()) != MANIFEST]
    lines = "".join(f"{_sha256(folder / name)}  {name}\n" for name in sorted(names))
    replace_file(folder / MANIFEST, f"{_HEAD}{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}")


def check_files(folder: Path, names: Iterable[str] | None = None, *, error: type[SqatError] = CheckpointError) -> None:
    """Compare files with the folder's manifest: `names`, or all that it lists. A file that it does not list, or any in
    a folder without one (as others make them), is not checked.

    Raises:
        error: a file is missing, cannot be read or is not what it was, or the manifest is not; the message names it.
    """
    sums = _read(folder / MANIFEST, error)
    for name in sums if names is None else [name for name in names if name in sums]:
        path = folder / name
        if not path.is_file():
            raise error(f"{path} is missing, although {MANIFEST} lists it")
        try:
            found = _sha256(path)
        except OSError as reason:
            raise error(f"{path} cannot be read: {reason}") from reason
        if found != sums[name]:
            raise error(
                f"{path} is damaged or truncated: its SHA-256 is not the one in {MANIFEST}. Restore it; or, if it was "
                f"changed on purpose, delete {folder / MANIFEST}"
            )


def _read(path: Path, error: type[SqatError]) -> dict[str, str]:
    """The checksums in a manifest by file name; none where it is not there."""
    try:
        if path.stat().st_size > _LARGEST:
            raise error(f"{path} is damaged: it has {path.stat().st_size} bytes, but must have at most {_LARGEST}")
        head, _, lines = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    if head != (_HEAD + hashlib.sha256(lines).hexdigest()).encode():
        raise error(
            f"{path} is damaged: its first line is not the checksum of the others. Without this file the folder is "
            "read unchecked"
        )
    sums = {}
    for line in lines.decode(errors="replace").removesuffix("\n").split("\n") if lines else ():
        if not (found := _LINE.fullmatch(line)):
            raise error(f"{path} has the line {line[:200]!r}, but must have a SHA-256, two spaces and a file's name")
        value, name = found.groups()
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise error(f"{path} lists {name!r}, but must list files in its own folder")
        sums[name] = value
    return sums


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
