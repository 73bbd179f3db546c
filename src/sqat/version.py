"""Which version of this package is running."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def revision() -> str | None:
    """The git revision that this package runs from, "+" if tracked files differ; None outside its repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    if head is None or git("ls-files", "--error-unmatch", str(folder / "__init__.py")) is None:
        return None  # installed inside another repository
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
