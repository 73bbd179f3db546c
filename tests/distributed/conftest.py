"""Groups of processes, forked from one that is ready to train (`warm.py`): each would need seconds for that."""

import json
import multiprocessing
import os
import runpy
import socket
import tempfile
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
TINY = {
    "vocab_size": 307,
    "hidden_size": 20,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 10,
    "intermediate_size": 11,
    "context_length": 29,
    "num_experts": 3,
}


@pytest.fixture(scope="session")
def cache():
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.fixture
def run_values(cache):
    """`run_values(max_steps=7, model={...}, data={...}, …)`: a run of a mixture-of-experts model on 61 stories."""

    def build(model=None, data=None, **train):
        settings = {"batch_size": 7, "precision": "float32", "log_every": 1, "tensorboard": False, "max_steps": 5}
        return {
            "model": {**TINY, **(model or {})},
            "data": {"source": "stories:61", "validation_limit": 3, "cache_dir": cache, **(data or {})},
            "train": {"device": "cpu", **settings, **train},
        }

    return build


@pytest.fixture
def launch(monkeypatch):
    """`launch(2, {"config": …, "out": …})`: see :func:`run_group`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")]))
    return run_group


def run_group(processes, job, *, seconds=300):
    """Run a job in a group of processes; what each leaves, `None` where one was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        members, results = [], []
        for i in range(processes):
            results.append(Path(folder) / f"{i}.json")
            group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(i), "LOCAL_RANK": str(i)}
            sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            own = {**job, "result": str(results[-1]), "environment": {**group, **sizes} if processes > 1 else {}}
            members.append(context.Process(target=runpy.run_path, args=(str(WORKER), {"JOB": own})))
        for member in members:
            member.start()
        for member in members:
            member.join(seconds)
        stuck = [i for i, member in enumerate(members) if member.is_alive()]
        for member in members:
            member.kill()
        assert not stuck, f"processes {stuck} still ran after {seconds} s"
        return [json.loads(path.read_text()) if path.exists() else None for path in results]
