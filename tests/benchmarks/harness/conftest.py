"""A context of tiny sizes, whose data are a few built-in stories."""

import pytest
from benchmarks.harness.settings import Context, Settings


@pytest.fixture
def context(tmp_path, monkeypatch):
    """`context(rounds=2, ...)`: quick sizes, no peers, an empty folder, no deadline."""
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    usual = {"quick": True, "rounds": 2, "data": "stories:211", "peers": False}

    def build(**changes):
        return Context(Settings(**{**usual, **changes}), folder)

    return build
