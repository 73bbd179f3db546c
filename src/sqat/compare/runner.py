"""A whole comparison: data once, every run in a process of its own, then the timing pass.

All of it can be stopped at any moment; the same command goes on.
"""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock

from sqat.compare.folder import Folder, Setup
from sqat.compare.plan import ComparePlan, share_budget
from sqat.compare.run import INTERRUPTED
from sqat.compare.timing import batches_of, time_variants
from sqat.durable import writing
from sqat.train.checkpoints import LOCK_FILE
from sqat.train.distributed import choose_device
from sqat.train.prepare import prepare_data
from sqat.train.run import METRICS_FILE
from sqat.train.signals import StopOnSignals

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
Show = Callable[[str, int, int | None], None]  # what is done now; how much is done, and how much there is
Progress = Callable[[str], AbstractContextManager[Show]]
POLL_SECONDS = 0.2
PATIENCE = 60  # seconds, with a run that a killed comparison left behind
METRICS_TAIL = 1 << 16  # bytes in which a run's latest step is looked for
LOG_FILE = "output.log"  # of a run: all it said


class Interrupted(Exception):
    """A signal stopped the comparison; the same command goes on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number  # of the signal


def run_comparison(
    plan: ComparePlan,
    out: Path,
    say: Say = logger.info,
    progress: Progress = lambda doing: nullcontext(lambda *_: None),
) -> list[str]:
    """Train and time what is not done yet in the folder `out`. A run that fails does not stop the others; returns a
    line for each that did.

    `say` gets a line when a run begins or ends; `progress` is entered for each part of the work, and shows it.

    Raises:
        ConfigError: `out` holds another comparison, or one is running there.
        DataError: the data cannot be read.
        Interrupted: SIGINT or SIGTERM came; the runs have saved their checkpoints.
    """
    folder = Folder(out)
    choose_device(plan.train.device)  # an error here, not in every run
    with folder.locked():
        folder.begin(plan)
        setup = settle(plan, folder, say, progress)
        with progress("training") as show:
            failures = train_all(plan, folder, setup, say, show)
        if plan.seeds:
            folder.write_results(plan)
        if plan.timing.rounds and folder.read_timing() is None:
            say("timing all variants in turn")
            with progress("timing") as show:
                time_variants(plan, list(setup.variants.values()), out, show)
    return failures


def settle(plan: ComparePlan, folder: Folder, say: Say, progress: Progress) -> Setup:
    """Fix each variant's steps, or read what an earlier start fixed. The data are tokenized first, so that the runs
    find them in the cache.
    """
    models = plan.models()
    with progress("reading data") as show:
        tokenised = lambda documents, _, total: show(f"tokenising: {documents:,} documents", documents, total)  # noqa: E731
        data = prepare_data(plan.data, models[0].model.vocab_size, progress=tokenised)
    if (folder.out / folder.SETUP).is_file():
        return folder.read_setup()
    batches = batches_of(plan, data)
    steps_per_epoch = -(-len(batches) // plan.train.gradient_accumulation)
    seconds: dict[str, list[float]] = {}
    if plan.match == "time":
        say("timing all variants in turn, for the budget")
        with progress("timing") as show:
            timing = folder.read_timing() or time_variants(plan, models, folder.out, show)
        seconds = {name: times["step_seconds"] for name, times in timing["variants"].items()}
    variants = share_budget(plan, steps_per_epoch, batches.targets_per_epoch / steps_per_epoch, seconds)
    threads = max(1, (os.cpu_count() or 1) // plan.processes)
    setup = Setup(threads, {variant.name: variant for variant in variants})
    folder.write_setup(setup)
    return setup


def train_all(plan: ComparePlan, folder: Folder, setup: Setup, say: Say, show: Show) -> list[str]:
    """Train what is not done, some runs at a time; returns a line for each run that failed."""
    runs = [(name, seed) for seed in plan.seeds for name in setup.variants]  # seed by seed: pairs can be compared early
    done = folder.finished()
    waiting = [run for run in runs if run not in done]
    steps = {run: setup.variants[run[0]].steps for run in waiting}
    reached = {run: _last_step(folder.run(*run)) for run in waiting}
    before, total = sum(reached.values()), sum(steps.values())
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    failures: list[str] = []
    with StopOnSignals(lambda reason: None) as signals:
        try:
            while (waiting or running) and not signals.received:
                if waiting and len(running) < plan.processes:
                    name, seed = run = waiting.pop(0)
                    running[run] = _start(folder, setup, name, seed)
                    say(f"{name}, seed {seed}: {steps[run]:,} steps")
                    continue
                time.sleep(POLL_SECONDS)
                for (name, seed), process in [*running.items()]:
                    reached[name, seed] = _last_step(folder.run(name, seed))
                    if process.poll() is None:
                        continue
                    del running[name, seed]
                    if process.returncode == 0:
                        number = folder.write_results(plan)
                        say(f"{name}, seed {seed}: done ({number} of {len(runs)})")
                    elif process.returncode != INTERRUPTED:
                        log = folder.run(name, seed) / LOG_FILE
                        said = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
                        failures.append(f"{name}, seed {seed}: {said[-1].strip()} (all it said: {log})")
                        say(f"failed: {failures[-1]}")
                now = [f"{run[0]}, seed {run[1]}: step {reached[run]:,} of {steps[run]:,}" for run in running]
                show("; ".join(now) or "training", sum(reached.values()) - before, total - before)
        finally:
            for process in running.values():
                process.terminate()  # it saves its checkpoint; a second signal would end it at once
            for process in running.values():
                process.wait()
    if signals.received:
        message = f"{signals.received.name} received; the same command goes on from the runs' checkpoints"
        raise Interrupted(message, signals.received)
    return failures


def _start(folder: Folder, setup: Setup, name: str, seed: int) -> subprocess.Popen[bytes]:
    """Begin to train one run, or go on with it, in a process of its own."""
    target = folder.run(name, seed)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        # The run of a killed comparison saves its checkpoint and ends: wait for it. Some file systems have no locks.
        with suppress(OSError), FileLock(target / LOCK_FILE, timeout=PATIENCE):
            pass
        opened = (target / LOG_FILE).open("ab")
    with opened as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sqat.compare.run", str(folder.out), name, str(seed)],
            env=_environment(setup.threads),
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends: see run.stop_with_parent
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )


def _last_step(run: Path) -> int:
    """The last step in a run's log."""
    try:
        with (run / METRICS_FILE).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - METRICS_TAIL))
            return int(re.findall(rb'"step": (\d+)', log.read())[-1])
    except (OSError, IndexError):
        return 0


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
