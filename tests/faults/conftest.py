"""What the tests of stopped commands share. SQAT_FAULTS=full (`make test-faults`) makes them thorough."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from harness import TRAIN, Commands, start_server

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]  # preloading, /proc and pidfds

CONFIG = """
model: {vocab_size: 307, hidden_size: 20, num_layers: 2, num_query_heads: 2, num_kv_heads: 1, head_dim: 10,
        intermediate_size: 11, context_length: 29, num_experts: 3, feedforward_dropout: 0.1}
data: {source: "stories:61", validation_limit: 3}
train: {batch_size: 5, precision: float32, tensorboard: false, device: cpu, max_steps: 7, log_every: 1,
        evaluate_every: 3, checkpoint_every: 2, keep_checkpoints: 1}
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The compiled shim, or `None` where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).parent / "shim.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def needs_shim(shim):
    if shim is None:
        reason = "there is no C compiler to build tests/faults/shim.c with"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, so that most faults would go untested")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def _server(tmp_path_factory, shim):
    folder = tmp_path_factory.mktemp("server")
    (folder / "config.yaml").write_text(CONFIG)
    server = start_server(folder, shim)
    yield server
    server.kill()
    server.communicate()


@pytest.fixture(scope="session")
def whole(_server, tmp_path_factory):
    """A run that was never stopped, and its changes to the disk."""
    made = Commands(_server, tmp_path_factory.mktemp("whole"))
    (made.folder / "config.yaml").write_text(CONFIG)
    ended = made(*TRAIN)
    assert ended.code == 0, ended.output
    made.changes = ended.changes
    return made


@pytest.fixture
def commands(_server, tmp_path):
    """`commands("name")` runs commands in a folder of its own, which has config.yaml, a small run."""

    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(CONFIG)
        return Commands(_server, tmp_path / name)

    return make
