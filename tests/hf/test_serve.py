"""`transformers serve` answers from a stock export, in a process that knows nothing of sqat."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqat.checkpoint import save_model
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer
from sqat.generate import SamplingConfig, generate
from sqat.hf.export import export
from sqat.model import Decoder

for _name in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(_name, reason=f"{_name} is in the extra 'interop'")


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """`serve(folder)` starts the server on a checkpoint; returns its address."""
    processes = []

    def start(folder: Path) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        code = "from transformers.cli.transformers import main; main()"
        command = [sys.executable, "-c", code, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        log = (folder.parent / "serve.log").open("w")
        processes.append(subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=log, stderr=log))
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.wait()


def post(url: str, request: dict[str, object], process_log: Path) -> dict[str, object]:
    data = json.dumps(request).encode()
    for _ in range(240):
        try:
            ready = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(ready, timeout=60) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.25)
    raise AssertionError(process_log.read_text())


@pytest.mark.slow
def test_completions(tiny_model: Callable[..., Decoder], serve: Callable[[Path], str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer((story(i, seed=0, split="train") for i in range(20)), 307)
    core = tiny_model(vocab_size=307, context_length=67)
    checkpoint = save_model(core, tmp_path / "checkpoint")
    tokenizer.save(checkpoint)
    out = tmp_path / "out"
    export(checkpoint, out, "stock")
    request = {"model": str(out), "prompt": "A cat", "max_tokens": 9, "temperature": 0}
    answer = post(f"{serve(out)}/v1/completions", request, tmp_path / "serve.log")
    expected = generate(core, tokenizer, "A cat", SamplingConfig(temperature=0, max_tokens=9))[0]
    assert [choice["text"] for choice in answer["choices"]] == [expected.text]  # type: ignore[attr-defined]
