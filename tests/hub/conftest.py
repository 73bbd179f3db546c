"""A Hub of the tests' own, and Python that talks to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

sys.path.append(str(Path(__file__).parent))
from server import Hub

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.tokenizer import to_transformers
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer

SOURCE = Path(__file__).resolve().parents[2] / "src"
STORIES = [story(i, seed=0, split="train") for i in range(30)]


@pytest.fixture
def hub(tmp_path):
    """Holds ReactiveAI/SQAT-mm: a small model of that kind, and its tokenizer."""
    folder = tmp_path / "served"
    to_transformers(train_tokenizer(STORIES, 300)).save_pretrained(folder)
    sizes = {"num_layers": 2, "vocab_size": 300, "embed_dim": 32, "ff_dim": 24, "seq_len": 32, "att_heads": 4}
    kind = {"att_type": "sqa", "att_groups": 1, "att_num_query_groups": 2, "ff_activation": "silu", "ff_dropout": 0.1}
    experts = {"use_moe_ff": True, "ff_num_experts": 4, "ff_moe_top_k": 2}
    ExperimentalAttentionTransformer(**sizes, **kind, **experts).save_pretrained(folder)
    with Hub() as server:
        server.add("ReactiveAI/SQAT-mm", {path.name: path.read_bytes() for path in folder.iterdir()})
        yield server


@pytest.fixture
def client(hub, tmp_path, monkeypatch):
    """The client of this process, pointed at the Hub, with folders of its own and nobody logged in."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stories_folder(tmp_path):
    """A data set in the Hub's layout."""
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "train.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    (folder / "validation.txt").write_text("\n<|endoftext|>\n".join(STORIES[:5]))
    return folder


@pytest.fixture
def run(hub, tmp_path):
    """`run(code)` in a Python and a working folder of its own, with this Hub from the start; returns its output."""
    working = tmp_path / "working"
    working.mkdir()

    def execute(code):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SQAT_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(SOURCE),
        }
        (working / "script.py").write_text(code)
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=working, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return execute
