"""An access token never shows: not in what is printed, logged or written, nor in a traceback."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "hub"))
from server import Hub

from sqat.cli import main
from sqat.errors import ConfigError
from sqat.hub import HIDDEN, cause, usable_token, without_tokens

SOURCE = Path(__file__).resolve().parents[2] / "src"
SECRET = "hf_ThisIsNobodysTokenButAPrettyLongOne"
# The HTTP library shows a header that it cannot send, and with it what the header holds, in its error and in its log.
UNSENDABLE = f"{SECRET}\x0bend"


@pytest.fixture
def hub():
    with Hub() as server:
        server.add("owner/private", {"README.md": b""}, private=True)
        yield server


class Home:
    """A user's home with a token, against a Hub of the test's own; everything printed and written is kept."""

    def __init__(self, folder, hub, token):
        self.folder = folder
        self.printed = ""
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_TOKEN": token,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SQAT_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(SOURCE),
        }

    def python(self, *arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        self.printed += done.stdout + done.stderr
        return done.returncode


def places(folder, printed):
    """Where the secret is found."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert printed
    return ["printed"] * (SECRET in printed) + [str(path) for path in files if SECRET.encode() in path.read_bytes()]


SMALL = """
model: {preset: sqat-xs, vocab_size: 307, hidden_size: 20, head_dim: 10, num_query_heads: 2, num_kv_heads: 1,
        num_layers: 1, intermediate_size: 11, context_length: 31}
data: {source: stories:61, validation_limit: 11}
train: {batch_size: 5, max_steps: 3, log_every: 1, precision: float32, tensorboard: true}
"""

FAILING = """
import logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from sqat.hub import download, upload
from sqat.convert.files import locate
from sqat.errors import SqatError

open("file.txt", "w").close()
secret = os.environ["HF_TOKEN"]
for value, token in ((secret, None), (secret + "\\x0bend", None), ("", secret), ("", secret + "\\x0bend")):
    os.environ["HF_TOKEN"] = value
    calls = [lambda: download("owner/missing", ["config.json"], token=token), lambda: locate("owner/missing")]
    if "end" in value + (token or ""):  # the client would try others again and again
        calls.append(lambda: upload(".", "owner/repo", "message", token=token))
    for call in calls:
        try:
            call()
            print("no failure")
        except SqatError:
            traceback.print_exc()
"""


def test_a_run(tmp_path, monkeypatch, capsys):
    """Training with TensorBoard, and text from its checkpoint."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "run.yaml").write_text(SMALL)
    for line in (
        ["train", "run.yaml", "--out", "run"],
        ["generate", "run", "Once", "--max-tokens", "3"],
        ["convert", "owner/missing", "--query-heads", "2", "--out", "out"],
    ):
        monkeypatch.setattr(sys, "argv", ["sqat", *line])
        with contextlib.suppress(SystemExit):
            main()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    printed = capsys.readouterr()
    assert "error: 'owner/missing' is no local folder" in printed.err
    assert places(tmp_path, printed.out + printed.err) == []


def test_tracebacks_of_the_hub_s_failures(tmp_path, hub):
    """The Hub refuses, or the HTTP library cannot send the token; it is the user's own, or an argument."""
    home = Home(tmp_path, hub, SECRET)
    (tmp_path / "script.py").write_text(FAILING)
    assert home.python("script.py") == 0, home.printed
    assert home.printed.count("Traceback (most recent call last)") >= 10
    assert "no failure" not in home.printed
    assert places(tmp_path, home.printed) == []
    assert any(token == SECRET for _, _, token in hub.requests)  # it was sent to the Hub


@pytest.mark.parametrize("token", [UNSENDABLE, f"{SECRET} x", f"{SECRET}é", f"{SECRET}\nx"])
def test_what_no_header_can_hold_is_refused_unseen(token):
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        usable_token(token)
    assert SECRET not in str(caught.value)
    assert usable_token(SECRET) == SECRET


def test_what_an_error_says_without_tokens(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", UNSENDABLE)
    error = ValueError(f"Illegal header value {f'Bearer {UNSENDABLE}'.encode()!r}")
    assert SECRET in str(error)
    assert without_tokens(error) == f"Illegal header value b'Bearer {HIDDEN}'"
    assert without_tokens("of another: hf_OtherToken", "hf_OtherToken") == f"of another: {HIDDEN}"
    assert cause(error) is None
    plain = ValueError("no connection")
    assert cause(plain) is plain
    plain.__context__ = error
    assert cause(plain) is None
