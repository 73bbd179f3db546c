"""A context of tiny sizes, whose data are a few built-in stories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.harness.settings import Context, Settings


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Context]:
    """`context(rounds=2, ...)`: quick sizes, no peers, an empty folder, no deadline."""
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    usual = {"quick": True, "rounds": 2, "data": "stories:211", "peers": False}

    def build(**changes: Any) -> Context:
        return Context(Settings(**{**usual, **changes}), folder)

    return build
