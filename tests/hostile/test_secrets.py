"""An access token never shows: not in what is printed, logged or written, nor in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "hub"))
from server import Hub

from sqat.errors import ConfigError
from sqat.hub import usable_token

SOURCE = Path(__file__).resolve().parents[2] / "src"
SECRET = "hf_ThisIsNobodysTokenButAPrettyLongOne"
# The HTTP library shows a header that it cannot send, and with it what the header holds, in its error and in its log.
UNSENDABLE = f"{SECRET}\x0bend"


@pytest.fixture(autouse=True)
def _readers_alone(monkeypatch):
    """Checksums are written here: training wants them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


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


def test_a_run(tmp_path, monkeypatch, sqat):
    """Training with TensorBoard, and text from its checkpoint."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (tmp_path / "run.yaml").write_text(SMALL)
    lines = ("train run.yaml --out run", "generate run Once --max-tokens 3", "convert owner/no --query-heads 2 --out x")
    printed = [sqat(*line.split()) for line in lines]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert "error: 'owner/no' is no local folder" in printed[-1][2]
    assert places(tmp_path, "".join(out + err for _, out, err in printed)) == []


def test_tracebacks_of_the_hub_s_failures(tmp_path):
    """The Hub refuses, or the HTTP library cannot send the token; it is the user's own, or an argument."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_TOKEN": SECRET, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(SOURCE)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
    with Hub() as hub:
        command, environment["HF_ENDPOINT"] = [sys.executable, "-c", FAILING], hub.url
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert printed.count("Traceback (most recent call last)") >= 10
    assert "no failure" not in printed
    assert places(tmp_path, printed) == []
    assert any(token == SECRET for _, _, token in hub.requests)  # it was sent to the Hub


@pytest.mark.parametrize("token", [UNSENDABLE, f"{SECRET} x", f"{SECRET}é", f"{SECRET}\nx"])
def test_what_no_header_can_hold_is_refused_unseen(token):
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        usable_token(token)
    assert SECRET not in str(caught.value)
    assert usable_token(SECRET) == SECRET
