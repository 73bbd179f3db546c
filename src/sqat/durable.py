"""Writing so that a file or folder is there whole or not at all: first under a hidden name beside its own."""

import os
import uuid
from pathlib import Path


def hidden_sibling(path: Path) -> Path:
    """A name beside `path` that nothing has: renaming from there to `path` is one step."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_durably(path: Path, content: str) -> None:
    """Write a text file and wait until it is on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: str) -> None:
    """Write a text file in place of what is there, in one step."""
    temporary = hidden_sibling(path)
    try:
        write_durably(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
