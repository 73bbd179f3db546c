"""`cpu/` only makes things faster: a package without it still trains, evaluates and writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import sqat

PROGRAM = """
import sqat
config = {"model": {"preset": "sqat-xs", "num_layers": 1, "context_length": 37}, "data": {"source": "stories:31"},
          "train": {"max_steps": 2, "batch_size": 3, "checkpoint_every": 1, "tensorboard": False}}
run = sqat.RunConfig.from_dict(config)
evaluation = sqat.start_run(run, "run").train()
assert 5 < evaluation.loss < 9, evaluation.loss
print(sqat.__file__)
"""


def test_a_package_without_cpu_trains_and_writes(tmp_path, monkeypatch):
    home = Path(sqat.__file__).parent
    shutil.copytree(home, tmp_path / "src/sqat", ignore=lambda folder, _: ["cpu"] if Path(folder) == home else [])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    trained = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    assert str(tmp_path) in trained.stdout
    command = [sys.executable, "-m", "sqat", "generate", "run", "Once", "--max-tokens", "5"]
    written = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("Once")
