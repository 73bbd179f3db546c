"""A whole comparison: data once, every run in a process of its own, then the timing pass.

All of it can be stopped at any moment; the same command goes on.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from sqat.compare.folder import Folder, Setup
from sqat.compare.plan import ComparePlan, share_budget
from sqat.compare.run import INTERRUPTED
from sqat.compare.timing import batches_of, time_variants
from sqat.durable import make_folder, writing
from sqat.train.checkpoints import LOCK_FILE
from sqat.train.distributed import choose_device
from sqat.train.prepare import prepare_data
from sqat.train.signals import StopOnSignals

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
POLL_SECONDS = 0.2
PATIENCE = 60  # seconds, with a run that a killed comparison left behind
LOG_FILE = "output.log"  # of a run: all it said


class Interrupted(Exception):
    """A signal stopped the comparison; the same command goes on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number  # of the signal


def run_comparison(plan: ComparePlan, out: Path, say: Say = logger.info) -> list[str]:
    """Train and time what is not done yet in the folder `out`. A run that fails does not stop the others; returns a
    line for each that did.

    Raises:
        ConfigError: `out` holds another comparison, or one is running there.
        DataError: the data cannot be read.
        Interrupted: SIGINT or SIGTERM came; the runs have saved their checkpoints.
    """
    folder = Folder(out)
    choose_device(plan.train.device)  # an error here, not in every run
    with folder.locked():
        folder.begin(plan)
        setup = settle(plan, folder, say)
        failures = train_all(plan, folder, setup, say)
        if plan.seeds:
            folder.write_results(plan)
        if plan.timing.rounds and folder.read_timing() is None:
            say("timing all variants in turn")
            time_variants(plan, list(setup.variants.values()), out)
    return failures


def settle(plan: ComparePlan, folder: Folder, say: Say) -> Setup:
    """Fix each variant's steps, or read what an earlier start fixed. The data are tokenized first, so that the runs
    find them in the cache.
    """
    models = plan.models()
    data = prepare_data(plan.data, models[0].model.vocab_size)
    if (folder.out / folder.SETUP).is_file():
        return folder.read_setup()
    batches = batches_of(plan, data)
    steps_per_epoch = -(-len(batches) // plan.train.gradient_accumulation)
    seconds: dict[str, list[float]] = {}
    if plan.match == "time":
        say("timing all variants in turn, for the budget")
        timing = folder.read_timing() or time_variants(plan, models, folder.out)
        seconds = {name: times["step_seconds"] for name, times in timing["variants"].items()}
    variants = share_budget(plan, steps_per_epoch, batches.targets_per_epoch / steps_per_epoch, seconds)
    threads = max(1, (os.cpu_count() or 1) // plan.processes)
    setup = Setup(threads, {variant.name: variant for variant in variants})
    folder.write_setup(setup)
    return setup


def train_all(plan: ComparePlan, folder: Folder, setup: Setup, say: Say) -> list[str]:
    """Train what is not done, some runs at a time; returns a line for each run that failed."""
    runs = [(name, seed) for seed in plan.seeds for name in setup.variants]  # seed by seed: pairs can be compared early
    done = folder.finished()
    waiting = [run for run in runs if run not in done]
    failures: list[str] = []
    started, stopping = time.monotonic(), threading.Event()
    with StopOnSignals(lambda reason: stopping.set()) as signals, ThreadPoolExecutor(plan.processes) as pool:
        try:
            tasks = {pool.submit(_train, folder, setup, *run, say, stopping): run for run in waiting}
            for task in as_completed(tasks):
                name, seed = tasks[task]
                code = task.result()
                if code == 0:
                    number = folder.write_results(plan)
                    left = (time.monotonic() - started) / (number - len(runs) + len(waiting)) * (len(runs) - number)
                    say(f"{name}, seed {seed}: done ({number} of {len(runs)}, about {left / 60:.0f} min left)")
                elif code != INTERRUPTED and not stopping.is_set():
                    log = folder.run(name, seed) / LOG_FILE
                    said = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
                    failures.append(f"{name}, seed {seed}: {said[-1].strip()} (all it said: {log})")
                    say(f"failed: {failures[-1]}")
        finally:
            stopping.set()
    if signals.received:
        message = f"{signals.received.name} received; the same command goes on from the runs' checkpoints"
        raise Interrupted(message, signals.received)
    return failures


def _train(folder: Folder, setup: Setup, name: str, seed: int, say: Say, stopping: threading.Event) -> int:
    """Train one run in a process of its own, which is asked to stop when `stopping` is set; returns its exit code."""
    if stopping.is_set():
        return INTERRUPTED
    target = folder.run(name, seed)
    with writing(target):
        make_folder(target)
        # The run of a killed comparison saves its checkpoint and ends: wait for it. Some file systems have no locks.
        with suppress(OSError), FileLock(target / LOCK_FILE, timeout=PATIENCE):
            pass
        opened = (target / LOG_FILE).open("ab")
    say(f"{name}, seed {seed}: {setup.variants[name].steps:,} steps")
    with opened as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sqat.compare.run", str(folder.out), name, str(seed)],
            env=_environment(setup.threads),
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends: see run.stop_with_parent
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
    while process.poll() is None:
        if stopping.wait(POLL_SECONDS):
            process.terminate()  # it saves its checkpoint; a second signal would end it at once
            process.wait()
    return process.returncode


def _environment(threads: int) -> dict[str, str]:
    """A run's environment variables: it imports this very package and computes with so many threads."""
    path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
