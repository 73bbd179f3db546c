"""What counting padding does to the card's figures, and what its router loss does to the load of experts: four runs.

    python benchmarks/padding-and-router/run.py path/to/TinyStories [--processes 2] [--out runs/padding-and-router]

Trains the runs of configs/ that are not done, each in one thread, and copies their logs to raw/
beside this file. Stopped or killed at any moment, the same command goes on from the newest checkpoints. Then figures.py
makes the tables and pictures.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sqat.bench import environment
from sqat.cli.train import read_run
from sqat.durable import replace_file
from sqat.train.checkpoints import latest_checkpoint
from sqat.train.prepare import prepare_data
from sqat.train.state import read_state

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
POLL_SECONDS = 0.5
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_all(waiting: Sequence[str], options: argparse.Namespace, lock: IO[str]) -> list[str]:
    """Some at a time; returns the names of those that failed."""
    left, failed = list(waiting), []
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while left or running:
            while left and len(running) < options.processes:
                name = left.pop(0)
                running[name] = start(name, options, lock)
                print(f"{name}: started", flush=True)
            time.sleep(POLL_SECONDS)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                done = running.pop(name).returncode == 0 and keep(name, options)
                print(f"{name}: {'done' if done else f'failed, see {options.out / name}.log'}", flush=True)
                failed += [] if done else [name]
    finally:
        for process in running.values():
            process.terminate()  # the run saves a checkpoint; a second signal would end it at once
        for process in running.values():
            process.wait()
    return failed


def start(name: str, options: argparse.Namespace, lock: IO[str]) -> "subprocess.Popen[bytes]":
    """A run that holds the lock too, as long as it lives: should this process be killed, the next one waits for it."""
    command = [sys.executable, "-m", "sqat", "train", str(CONFIGS / f"{name}.yaml"), "--data", options.data]
    command += ["--out", str(options.out / name), "--resume", *(f"--set={change}" for change in options.set)]
    with (options.out / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
        )


def keep(name: str, options: argparse.Namespace) -> bool:
    """Copy the log of a finished run, with each expert's load in its evaluations; false where it is not finished."""
    checkpoint = latest_checkpoint(options.out / name)
    if checkpoint is None or not read_state(checkpoint).finished:
        return False
    replace_file(options.raw / f"{name}.jsonl", (options.out / name / "metrics.jsonl").read_text(encoding="utf-8"))
    replace_file(options.raw / "environment.json", json.dumps({**environment(), "threads": 1}, indent=1) + "\n")
    return True


def stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a source, as for `sqat train --data`")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/padding-and-router"), help="folder of the runs")
    parser.add_argument("--raw", type=Path, default=HERE / "raw", help="folder of the results")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="another field, for a trial")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.raw.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    with contextlib.suppress(KeyboardInterrupt), (options.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for runs that outlived an earlier start
        names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        if waiting := [name for name in names if not (options.raw / f"{name}.jsonl").is_file()]:
            config = read_run(str(CONFIGS / f"{names[0]}.yaml"), [f"data.source={options.data}", *options.set])
            prepare_data(config.data, config.model.vocab_size)  # once, before runs side by side would do it twice
            sys.exit(1 if run_all(waiting, options, lock) else 0)
        sys.exit(0)
    sys.exit("stopped; the same command goes on")


if __name__ == "__main__":
    main()
