"""A whole comparison: data once, every run in a process of its own, the timing pass, the report."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGINT

import sqat
from sqat.compare.budget import shares
from sqat.compare.child import INTERRUPTED
from sqat.compare.folder import Folder, Setup
from sqat.compare.plan import ComparePlan
from sqat.compare.timing_pass import read_timing, time_variants
from sqat.data.batches import Batches
from sqat.durable import make_folder, writing
from sqat.train.prepare import prepare_data
from sqat.train.signals import StopOnSignals

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
Run = tuple[str, int]  # variant, seed
POLL_SECONDS = 0.2


class Interrupted(Exception):
    """Stopped by a signal; the same command goes on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def run_comparison(plan: ComparePlan, out: Path, say: Say = logger.info) -> list[str]:
    """Do what is not done yet; returns a line for every run that failed (the others are done all the same).

    Raises:
        ConfigError: `out` holds another comparison, or one is running there.
        DataError: data that cannot be read.
        Interrupted: SIGINT or SIGTERM; the runs have saved their checkpoints.
    """
    folder = Folder(out)
    with folder.locked(say) as lock:
        folder.begin(plan)
        setup = _settle(plan, folder, say)
        failures = _Processes(plan, folder, setup, say, lock).run_all()
        if plan.seeds:
            folder.write_results(plan)
        if plan.timing.rounds and read_timing(out) is None:
            say("timing all variants in turn")
            time_variants(plan, list(setup.shares.values()), out)
    return failures


def _settle(plan: ComparePlan, folder: Folder, say: Say) -> Setup:
    """Tokenise, so that the runs find everything in the cache, and fix each variant's steps, or read them."""
    models = plan.models()
    data = prepare_data(plan.data, models[0].model.vocab_size)
    if (folder.out / folder.SETUP).is_file():
        return folder.read_setup()
    rows = Batches(
        data.train,
        batch_size=plan.train.batch_size,
        context_length=models[0].model.context_length,
        mode=plan.data.mode,
        padding_as_target=plan.data.padding_as_target,
    )
    steps_per_epoch = -(-len(rows) // plan.train.gradient_accumulation)
    seconds: dict[str, list[float]] = {}
    if plan.match == "time":
        say("timing all variants in turn, for the budget")
        timing = read_timing(folder.out) or time_variants(plan, models, folder.out)
        seconds = {name: figures["step_seconds"] for name, figures in timing["variants"].items()}
    found = shares(plan, steps_per_epoch, rows.targets_per_epoch / steps_per_epoch, seconds)
    threads = max(1, (os.cpu_count() or 1) // plan.processes)
    setup = Setup(threads, {share.variant.name: share for share in found})
    folder.write_setup(setup)
    return setup


class _Processes:
    """The runs that are not done, some at a time."""

    def __init__(self, plan: ComparePlan, folder: Folder, setup: Setup, say: Say, lock: int) -> None:
        self.plan, self.folder, self.setup, self.say, self.lock = plan, folder, setup, say, lock
        self.stopping: str | None = None

    def run_all(self) -> list[str]:
        done = self.folder.finished()
        waiting = [
            (variant.name, seed)
            for seed in self.plan.seeds  # a seed after the other: there are pairs to look at early
            for variant in self.plan.models()
            if (variant.name, seed) not in done
        ]
        failures: list[str] = []
        runs = len(self.plan.seeds) * len(self.plan.variants)
        with StopOnSignals(self._stop) as signals:
            for (name, seed), code in self._ended(waiting):
                if code == 0:
                    number = self.folder.write_results(self.plan)
                    self.say(f"{name}, seed {seed}: done ({number} of {runs})")
                elif code != INTERRUPTED and not self.stopping:
                    failures.append(f"{name}, seed {seed}: {_last_error(self._log(name, seed))}")
                    self.say(f"failed: {failures[-1]}")
        if self.stopping:
            message = f"{self.stopping}; the same command goes on from the runs' checkpoints"
            raise Interrupted(message, signals.received or SIGINT)
        return failures

    def _ended(self, waiting: Sequence[Run]) -> Iterator[tuple[Run, int]]:
        """Start the runs in order, and yield each with its exit code when it is over."""
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
        share, target = self.setup.shares[name], self.folder.run(name, seed)
        self.say(f"{name}, seed {seed}: {share.steps:,} steps")
        with writing(target):
            make_folder(target)
            if self.plan.processes > 1:
                (target / Folder.SHARED).touch()
            opened = self._log(name, seed).open("ab")
        with opened as log:
            return subprocess.Popen(
                [sys.executable, "-m", "sqat.compare.child", str(self.folder.out), name, str(seed)],
                env=_environment(self.setup.threads),
                stdin=subprocess.PIPE,  # closed when we end, however we do: see child.stop_with_parent
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock],
                start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
            )

    def _log(self, name: str, seed: int) -> Path:
        return self.folder.run(name, seed) / "output.log"

    def _stop(self, reason: str) -> None:
        self.stopping = reason


def _environment(threads: int) -> dict[str, str]:
    """A run's variables: this process's, and with them this very package is found, with so many threads."""
    path = [str(Path(sqat.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it said nothing'} (all it said: {log})"
