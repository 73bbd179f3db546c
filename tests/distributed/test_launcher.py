"""The real thing: `torchrun -m sqat train`, signals, deaths and restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from sqat.train.checkpoints import list_checkpoints

in_full = pytest.mark.skipif(os.environ.get("SQAT_FAULTS") != "full", reason="takes long: SQAT_FAULTS=full")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LOST = "another process of this run was killed, failed or does not answer"


@pytest.fixture
def train(tmp_path, run_values):
    """`train(max_steps=7, launcher=[...])` starts the command on that run; the caller waits for it."""

    @contextmanager
    def start(*options, launcher=TORCHRUN, **values):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values(**values)))
        command = [*launcher, "-m", "sqat", "train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)  # it ends its workers; no effect where it is over

    return start


def steps(out):
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if '"train"' in line]


def wait_for_step(out, step):
    end = time.monotonic() + 300
    while not steps(out) or steps(out)[-1] < step:
        assert time.monotonic() < end, "no step"
        time.sleep(0.05)


def workers(launcher):
    """The training processes, in the order of their ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = dict(
            entry.partition("=")[::2] for entry in Path(f"/proc/{child}/environ").read_text().split("\0")
        )
        if "RANK" in environment:
            ranks[int(environment["RANK"])] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]


def test_torchrun(train, tmp_path):
    with train(max_steps=3) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("Best checkpoint") == 1
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000003"]


@in_full
@pytest.mark.parametrize(
    "options", [["--set", "train.batch_size=1"], ["--set", "train.bath_size=8"], ["--device", "cuda:0"]]
)
def test_an_error_is_one_line_of_each_rank(train, options):
    with train(*options) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    lines = [line for line in err.splitlines() if line.startswith("error of rank")]
    assert [len(line) > 20 for line in lines] == [True, True], err


@in_full
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_a_killed_process_ends_the_job_in_seconds_with_one_message(train, tmp_path, victim):
    with train(max_steps=100_000) as process:
        wait_for_step(tmp_path / "run", 3)
        os.kill(workers(process)[victim], signal.SIGKILL)
        killed = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode != 0
    assert err.count(LOST) == 1, err
    assert "Traceback" not in err.partition(LOST)[0]


@in_full
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_max_restarts_goes_on_by_itself(train, tmp_path):
    launcher = [*TORCHRUN, "--max-restarts=2"]
    with train(max_steps=90, checkpoint_every=2, launcher=launcher) as process:
        for step in (5, 40):
            wait_for_step(tmp_path / "run", step)
            os.kill(workers(process)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert err.count(LOST) == 2, err
    assert out.count("Best checkpoint") == 1
    assert steps(tmp_path / "run") == list(range(1, 91))


@in_full
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("to", ["all, through torchrun", "the first", "the second"])
def test_sigterm_leaves_one_checkpoint(train, tmp_path, to):
    with train(max_steps=100_000) as process:
        wait_for_step(tmp_path / "run", 3)
        pid = process.pid if to.startswith("all") else workers(process)[to == "the second"]
        os.kill(pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert out.count("Stopped at step") == 1, err
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"step-{steps(tmp_path / 'run')[-1]:08d}"]
    assert err.count("SIGTERM received") == 1
