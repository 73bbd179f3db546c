"""One run of a comparison, in a process of its own: `python -m sqat.compare.child OUT VARIANT SEED`.

It goes on from its newest checkpoint, and writes result.json when all is done.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from sqat.compare.figures import run_figures
from sqat.compare.folder import Folder
from sqat.durable import replace_file
from sqat.train import start_run

INTERRUPTED = 75  # the exit code of a run that was stopped and can go on (BSD's EX_TEMPFAIL)


def run(out: Path, name: str, seed: int) -> int:
    """Train, evaluate, probe, write result.json; returns the exit code."""
    folder = Folder(out)
    plan, setup = folder.read_plan(), folder.read_setup()
    torch.set_num_threads(setup.threads)
    share = setup.shares[name]
    target = folder.run(name, seed)
    trainer = start_run(plan.run_config(share.variant, seed, share.steps), target, resume=True)
    if not trainer.state.finished:
        trainer.train()
    if trainer.interrupted or trainer.signals.received:  # a signal may come too late to interrupt the training
        return INTERRUPTED
    replace_file(target / folder.RESULT, json.dumps(run_figures(plan, share.variant, seed, trainer)))
    return 0


def stop_with_parent() -> None:
    """Ask this process to stop, as SIGTERM does, when the comparison that started it is gone: its end of our standard
    input closes even if it was killed.
    """

    def wait() -> None:
        os.read(0, 1)  # nothing ever comes, but the end; sys.stdin's own lock would be in the way of a clean exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """For `python -m`."""
    stop_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    out, name, seed = sys.argv[1:]
    sys.exit(run(Path(out), name, int(seed)))


if __name__ == "__main__":
    main()
