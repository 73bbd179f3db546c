"""`transformers serve` answers from a stock export, by the lines of docs/ecosystem.md, where nothing knows of sqat."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sqat.checkpoint import save_model
from sqat.formats import export
from sqat.generate import SamplingConfig, generate

for _name in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(_name, reason=f"{_name} is in the extra 'interop'")
if shutil.which("curl") is None:
    pytest.skip("the lines of docs/ecosystem.md need curl", allow_module_level=True)

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_lines(lines, folder):
    """The JSON that they print; the server among them, which has a log, is ended afterwards."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (folder / "serve.log").open("w") as log:
        command = ["sh", "-c", f"{lines}\nkill $!"]
        shell = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        try:
            printed = shell.communicate(timeout=240)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return next((line for line in printed.splitlines() if line.startswith("{")), "")


@pytest.mark.slow
def test_completions(tiny_model, tokenizer, tmp_path):
    [lines] = re.findall(r"```sh\n(transformers serve .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    core = tiny_model(vocab_size=303, context_length=67)
    tokenizer.save(save_model(core, tmp_path / "checkpoint"))
    export(tmp_path / "checkpoint", tmp_path / "runs" / "mine-stock", "stock")
    answer = run_lines(lines.replace("8000", str(free_port())), tmp_path)
    assert answer, (tmp_path / "serve.log").read_text()
    expected = generate(core, tokenizer, "Once upon a time", SamplingConfig(temperature=0, max_tokens=9))
    assert [choice["text"] for choice in json.loads(answer)["choices"]] == [expected.text]
