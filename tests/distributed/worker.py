"""What a process of a test's group does. It is run by its path, with the global JOB: a test module has no name to be
imported by.
"""

import hashlib
import json
import os
import signal
from pathlib import Path

import torch

from sqat.cpu import shards
from sqat.errors import SqatError
from sqat.run_config import RunConfig
from sqat.train import Callback, Trainer, start_run
from sqat.train import trainer as loop
from sqat.train.distributed import gather, rank


class At(Callback):
    """In one process, something after a step."""

    everywhere = True

    def __init__(self, process, step, deed):
        self.place, self.deed = (process, step), deed

    def on_step(self, trainer):
        if (rank(), trainer.state.step) == self.place:
            if self.deed == "stop":
                trainer.stop("asked to")
            elif self.deed == "spoil":  # the gradients of all steps from now on
                trainer.model.embedding.weight.register_hook(lambda grad: grad * float("nan"))
            else:
                os.kill(os.getpid(), signal.Signals[self.deed])


def told(feed, steps):
    """`feed`, that tells of each step where the next goes on, and a hash of all processes' rows in their order."""

    def feeding(*arguments):
        for data in feed(*arguments):
            own = [[] if batch.counted == 0 else _rows(batch) for batch in data.micro_batches]  # 0: it fills up
            whole = [[row for rows in parts for row in rows] for parts in zip(*gather(own), strict=True)]
            steps.append([*data.after, hashlib.sha256(json.dumps(whole).encode()).hexdigest()])
            yield data

    return feeding


def _rows(batch):
    columns = [batch.inputs, batch.targets, batch.positions, batch.documents]
    return list(zip(*(column.tolist() for column in columns if column is not None), strict=True))


def part(parameter):
    """What this process has of it."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def run(job):
    """Train; what is left of it in this process."""
    deeds = [At(*deed) for deed in job.get("deeds", [])]
    shards.SHARD_TOKENS, loop.step.suitable_shards = 1, lambda _: job.get("shards", 1)
    steps = []
    if job.get("tell_steps"):
        loop.feed = told(loop.feed, steps)
    settings = {"resume": job.get("resume", False), "callbacks": deeds}
    if job.get("uptrain"):
        from sqat.convert.uptrain import start_uptraining
        from sqat.uptrain_config import UptrainConfig

        trainer: Trainer = start_uptraining(UptrainConfig.from_dict(job["config"]), job["out"], **settings)
    else:
        trainer = start_run(RunConfig.from_dict(job["config"]), job["out"], **settings)
    trainer.train()
    state, groups = trainer.state, trainer.optimizer.param_groups
    return {
        "step": state.step,
        "tokens": state.tokens,
        "data": list(state.data),
        "steps": steps,
        "interrupted": trainer.interrupted,
        "stop_reason": trainer.stop_reason,
        "own": sum(part(parameter).numel() for group in groups for parameter in group["params"]),
    }


def main(job):
    torch.set_num_threads(1)
    os.environ.update(job["environment"])
    try:
        result = run(job)
    except SqatError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    Path(job["result"]).write_text(json.dumps(result))


main(JOB)  # noqa: F821
