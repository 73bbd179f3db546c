"""The cache folder: where it is, and what happens where there is none."""

import pytest

from sqat import folders
from sqat.data.stories import story
from sqat.data.text import open_source
from sqat.train.prepare import cached_tokenizer


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    folders._writable.cache_clear()
    for name in ("SQAT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield
    folders._writable.cache_clear()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "home/.cache/sqat"), ({"XDG_CACHE_HOME": "~/xdg"}, "home/xdg/sqat"), ({"SQAT_CACHE": "~/own"}, "home/own")],
)
def test_the_cache_folder(monkeypatch, tmp_path, variables, expected):
    for name, value in {"HOME": str(tmp_path / "home"), **variables}.items():
        monkeypatch.setenv(name, value)
    assert folders.default_cache() == tmp_path / expected


@pytest.mark.parametrize("how", ["no home", "a file", "no permission"])
def test_without_a_cache_all_runs_with_one_warning(monkeypatch, tmp_path, caplog, how):
    if how == "no home":
        monkeypatch.setattr("pathlib.Path.expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        place = tmp_path / "file" if how == "a file" else "/proc/nowhere"
        (tmp_path / "file").touch()
        monkeypatch.setenv("SQAT_CACHE", str(place))
    folder = folders.default_cache()
    assert folder == folders.default_cache()
    (folder / "file").touch()
    (message,) = caplog.messages
    assert "nothing is cached, since" in message
    if how != "no home":
        tokenizer = cached_tokenizer(open_source("stories:7"), 300)
        assert tokenizer.decode(tokenizer.encode(story(0))) == story(0)


def test_a_damaged_tokenizer_in_the_cache_is_trained_again(tmp_path, caplog):
    source = open_source("stories:7")
    tokenizer = cached_tokenizer(source, 300, tmp_path)
    (path,) = (tmp_path / "tokenizers").glob("*/tokenizer.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert cached_tokenizer(source, 300, tmp_path).fingerprint() == tokenizer.fingerprint()
    assert "made again: " in caplog.text
    assert path.read_bytes() == whole
