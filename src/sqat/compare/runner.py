"""A whole comparison: data once, every run in a process of its own, then the timing pass.

All of it can be stopped at any moment; the same command goes on.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGINT

from sqat.compare.folder import Folder, Setup
from sqat.compare.plan import ComparePlan, share_budget
from sqat.compare.run import INTERRUPTED
from sqat.compare.timing import batches_of, time_variants
from sqat.durable import make_folder, writing
from sqat.train.distributed import choose_device
from sqat.train.prepare import prepare_data
from sqat.train.signals import StopOnSignals

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
Run = tuple[str, int]  # variant, seed
POLL_SECONDS = 0.2


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
    with folder.locked(say) as lock:
        folder.begin(plan)
        setup = settle(plan, folder, say)
        failures = _Processes(plan, folder, setup, say, lock).run_all()
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


class _Processes:
    """The runs that are not done, some at a time."""

    def __init__(self, plan: ComparePlan, folder: Folder, setup: Setup, say: Say, lock: int) -> None:
        self.plan, self.folder, self.setup, self.say, self.lock = plan, folder, setup, say, lock
        self.stopping: str | None = None  # why, once a signal came

    def run_all(self) -> list[str]:
        """Train what is not done; returns a line for each run that failed."""
        done, names = self.folder.finished(), list(self.setup.variants)
        runs = [(name, seed) for seed in self.plan.seeds for name in names]  # seed by seed: pairs can be compared early
        failures: list[str] = []
        started, already = time.monotonic(), len([run for run in runs if run in done])
        with StopOnSignals(self._stop) as signals:
            for (name, seed), code in self._ended([run for run in runs if run not in done]):
                if code == 0:
                    number = self.folder.write_results(self.plan)
                    left = (time.monotonic() - started) / max(number - already, 1) * (len(runs) - number) / 60
                    self.say(f"{name}, seed {seed}: done ({number} of {len(runs)}, about {left:.0f} min left)")
                elif code != INTERRUPTED and not self.stopping:
                    log = self._log(name, seed)
                    lines = [*filter(None, map(str.strip, log.read_text("utf-8", "replace").splitlines()))]
                    said = lines[-1] if lines else "it said nothing"
                    failures.append(f"{name}, seed {seed}: {said} (all it said: {log})")
                    self.say(f"failed: {failures[-1]}")
        if self.stopping:
            message = f"{self.stopping}; the same command goes on from the runs' checkpoints"
            raise Interrupted(message, signals.received or SIGINT)
        return failures

    def _ended(self, waiting: Sequence[Run]) -> Iterator[tuple[Run, int]]:
        """Start the runs in order, and yield each with its exit code when it ends."""
        left = list(waiting)
        running: dict[Run, subprocess.Popen[bytes]] = {}
        try:
            while running or (left and not self.stopping):
                while left and len(running) < self.plan.processes and not self.stopping:
                    run = left.pop(0)
                    running[run] = self._start(*run)
                time.sleep(POLL_SECONDS)
                for run, process in list(running.items()):
                    if self.stopping:
                        process.terminate()  # it saves its checkpoint; a second signal would end it at once
                        process.wait()
                    if process.poll() is not None:
                        del running[run]
                        yield run, process.returncode
        finally:
            for process in running.values():
                process.terminate()
                process.wait()

    def _start(self, name: str, seed: int) -> subprocess.Popen[bytes]:
        target = self.folder.run(name, seed)
        self.say(f"{name}, seed {seed}: {self.setup.variants[name].steps:,} steps")
        with writing(target):
            make_folder(target)
            if self.plan.processes > 1:
                (target / Folder.SHARED).touch()
            opened = self._log(name, seed).open("ab")
        with opened as log:
            return subprocess.Popen(
                [sys.executable, "-m", "sqat.compare.run", str(self.folder.out), name, str(seed)],
                env=_environment(self.setup.threads),
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends: see run.stop_with_parent
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock],
                start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            )

    def _log(self, name: str, seed: int) -> Path:
        return self.folder.run(name, seed) / "output.log"

    def _stop(self, reason: str) -> None:
        self.stopping = reason


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
