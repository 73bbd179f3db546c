"""Exports in a Python of their own, in which sqat is not installed at all. SQAT_FAULTS=full runs these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from sqat.checkpoint import save_model
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer
from sqat.formats import export
from sqat.model import Decoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("SQAT_FAULTS") != "full", reason="takes long: SQAT_FAULTS=full"),
]

LOAD = """
import importlib.util, json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, trusted = sys.argv[1], sys.argv[2] == "transformers"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusted)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
with torch.no_grad():
    logits = model(torch.arange(4, 21).unsqueeze(0)).logits[0]
found = [name for name in ("sqat", "rxnn") if importlib.util.find_spec(name)]
print(json.dumps({"found": found, "class": type(model).__name__, "logits": logits.tolist(),
                  "ids": tokenizer("A cat").input_ids}))
"""


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with links to all packages of this one but sqat's own."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [there] = folder.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not any(name in path.name.lower() for name in ("sqat", "rxnn")):  # its link (.pth) among them
            (there / path.name).symlink_to(path)
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    ("form", "changes", "name"),
    [
        ("transformers", {"moe": True, "window": 5}, "SQATForCausalLM"),
        ("stock", {"moe": True, "hidden_size": 24, "intermediate_size": 16}, "MixtralForCausalLM"),
    ],
)
def test_an_export_loads(
    form: str,
    changes: dict[str, object],
    name: str,
    tiny_model: Callable[..., Decoder],
    fresh_python: Path,
    tmp_path: Path,
) -> None:
    core = tiny_model(vocab_size=307, **changes)
    folder = save_model(core, tmp_path / "checkpoint")
    train_tokenizer((story(i, seed=0, split="train") for i in range(20)), 303).save(folder)
    export(folder, tmp_path / "out", form)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(fresh_python), "-c", LOAD, str(tmp_path / "out"), form],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["found"], found["class"]) == ([], name)
    with torch.no_grad():
        expected = core(torch.arange(4, 21).unsqueeze(0)).logits[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-5, atol=1e-5)
    assert found["ids"] == AutoTokenizer.from_pretrained(tmp_path / "out")("A cat").input_ids
