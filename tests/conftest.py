"""What all tests share: small models of distinct sizes, prime where they can be, so that swapped axes cannot hide."""

import json
import os
import subprocess
import sys

import pytest
import torch

from sqat.cli import main
from sqat.config import ModelConfig
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer
from sqat.folders import default_cache
from sqat.model import Decoder

# Compiled once for all tests, although many of them have a cache folder of their own.
os.environ.setdefault("NUMBA_CACHE_DIR", str(default_cache() / "kernels"))
os.fsync = lambda _: None  # no test cuts the power, and a flush takes milliseconds
torch.set_num_threads(1)  # tiny tensors: threads would wait for each other, and the longer the busier the machine is

SIZES = {
    "vocab_size": 41,
    "hidden_size": 23,
    "num_layers": 2,
    "num_query_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 10,
    "intermediate_size": 13,
    "context_length": 19,
}
MOE = {"num_experts": 7, "experts_per_token": 2}


@pytest.fixture(scope="session")
def tokenizer():
    """303 entries, learned from stories."""
    return train_tokenizer((story(i, seed=0, split="train") for i in range(20)), 303)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
    """`tiny_config(moe=True, tie_embeddings=False, …)`: dense or with experts, and some fields changed."""
    return lambda moe=False, **changes: ModelConfig.from_dict({**SIZES, **(MOE if moe else {}), **changes})


@pytest.fixture
def tiny_model(tiny_config):
    """As `tiny_config`, built, and in evaluation mode; every parameter is off its default, so that no norm or bias can
    be skipped unseen.
    """

    def build(moe=False, **changes):
        model = Decoder(tiny_config(moe, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model.eval()

    return build


@pytest.fixture
def rxnn_model(tiny_model):
    """As `tiny_model`, of what RxNN's layout can hold: H 6, head_dim 10."""
    quirks = {"hidden_size": 60, "norm_eps": None, "final_norm": None, "tie_embeddings": False}
    biases = dict.fromkeys(("attention_out_bias", "feedforward_bias", "head_bias"), True)
    return lambda moe=False, **changes: tiny_model(moe, **{**quirks, **biases, **changes})


@pytest.fixture
def sqat(tmp_path, monkeypatch, capsys):
    """`sqat("info", "sqat-mm")` gives (exit code, standard output, standard error); the current folder and the cache
    are the test's own.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sqat", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def flip_bytes():
    """`for _ in flip_bytes(path)`: within the loop a bit of the first, the middle or the last byte is another."""

    def flips(path):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            yield
        path.write_bytes(whole)

    return flips


@pytest.fixture
def without_sqat():
    """`without_sqat(code, folder)`: what code prints last, read as JSON, run in a folder by a Python that cannot import
    sqat.
    """

    def run(code, folder):
        blocked = (
            "import sys\n"
            "class Absent:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('sqat', 'rxnn'):\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Absent())\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", blocked + code],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return run
