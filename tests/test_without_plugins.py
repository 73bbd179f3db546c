"""`cpu/` only makes things faster: a package without it still trains, evaluates and writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import sqat

PROGRAM = """
import sqat
from sqat.cli import app
config = {"model": {"preset": "sqat-xs", "num_layers": 1, "context_length": 37}, "data": {"source": "stories:31"},
          "train": {"max_steps": 2, "batch_size": 3, "checkpoint_every": 1, "tensorboard": False}}
run = sqat.RunConfig.from_dict(config)
evaluation = sqat.start_run(run, "run").train()
assert 5 < evaluation.loss < 9, evaluation.loss
print(sqat.__file__)
app(["generate", "run", "Once", "--max-tokens", "5"])
"""


def test_a_package_without_cpu_trains_and_writes(tmp_path, monkeypatch):
    home = Path(sqat.__file__).parent
    shutil.copytree(home, tmp_path / "src/sqat", ignore=lambda folder, _: ["cpu"] if Path(folder) == home else [])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, text = done.stdout.strip().splitlines()[-2:]
    assert str(tmp_path) in where
    assert text.startswith("Once")
