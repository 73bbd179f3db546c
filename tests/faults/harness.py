"""Commands that are stopped in the midst, and what is true of a folder afterwards."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from sqat.checkpoint import load_model
from sqat.durable import SUFFIX
from sqat.train.checkpoints import list_checkpoints
from sqat.train.state import read_state

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
FULL = os.environ.get("SQAT_FAULTS") == "full"
TIMES = ("tokens_per_second", "data_wait")  # what a log may differ in
KILLED = -9
FREEING = ("unlink", "rmdir", "rename", "chmod")  # what a full disk still does
TRAIN = ("train", "config.yaml", "--out", "run", "--resume")


@dataclass
class Ended:
    """How a command ended, and its changes to the disk: "kind path" each, in order."""

    code: int
    output: str
    changes: list[str]


@dataclass
class Commands:
    """Runs `sqat` commands within `folder`, in forks of a server."""

    server: subprocess.Popen[str]
    folder: Path
    changes: list[str] = field(default_factory=list)  # of a run that a test keeps here

    def __call__(self, *command, action="count", at=0, value=0, again=0, seconds=None, before="", modules=()):
        """`sqat COMMAND`, with `action` ("kill", "fail" with errno `value`, "signal" `value`) at the n-th change, or
        killed after some seconds; `before` is Python that runs first in the command's process, and `modules` are
        imported in the server once, so that the command has them.
        """
        # What is of this harness lies beside the folder, so that it is not in the command's way.
        log, trace = (self.folder.with_name(f"{self.folder.name}.{name}") for name in ("log", "trace"))
        request = {
            "command": command,
            "seconds": seconds,
            "before": before,
            "modules": modules,
            "folder": str(self.folder),
            "root": os.path.realpath(self.folder),
            "log": str(log),
            "trace": str(trace),
            "fault": {"action": action, "at": at, "value": value, "again": again},
            "environment": {"SQAT_CACHE": str(self.folder / "cache")},
        }
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return Ended(answer["code"], log.read_text(errors="replace"), trace.read_text().splitlines())


def start_server(folder, shim):
    environment = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg", "COLUMNS": "200"}
    environment |= {} if shim is None else {"LD_PRELOAD": str(shim)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    program = [sys.executable, str(HERE / "fault_server.py")]
    return subprocess.Popen(program, cwd=folder, env={**os.environ, **environment}, **pipes)


def log_of(run, name="metrics.jsonl", without=TIMES):
    """Its lines, but for wall-clock figures."""
    records = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in without} for record in records]


def newest_is_whole(run, load=load_model):
    """Load everything in the run's newest checkpoint, and in any other that counts as one; returns the newest's step, 0
    where there is none.
    """
    step = 0
    for checkpoint in list_checkpoints(run):
        load(checkpoint)
        load_file(checkpoint / "training.safetensors")
        step = read_state(checkpoint).step
    return step


def assert_same_run(run, other):
    """Weights, optimiser, random generators, progress and log are equal to the bit."""
    ours, theirs = list_checkpoints(run)[-1], list_checkpoints(other)[-1]
    assert ours.name == theirs.name
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    for path in ours.iterdir():
        if path.name != "training.safetensors":
            assert path.read_bytes() == (theirs / path.name).read_bytes(), path.name
    first, second = (load_file(folder / "training.safetensors") for folder in (ours, theirs))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert log_of(run) == log_of(other)


def assert_refused(ended, reason, *said):
    """The command ended with one line: what the system refused, and what to do."""
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    last = ended.output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for text in (f"cannot be written: {reason}", *said):
        assert text in last


def litter(folder):
    """What killed writers left."""
    return [path for path in folder.rglob(".*") if path.name.endswith((SUFFIX, ".previous"))]


def assert_whole_and_goes_on(sqat, whole):
    """The run, resumed by the same command, ends as one that was never stopped, and nothing lies about."""
    ended = sqat(*TRAIN)
    assert ended.code == 0, ended.output
    assert_same_run(sqat.folder / "run", whole.folder / "run")
    assert litter(sqat.folder) == []


def first_change(whole, kind, text):
    """The number of the first change of a kind to a path with some text in it."""
    return next(i + 1 for i, change in enumerate(whole.changes) if change.startswith(kind) and text in change)
