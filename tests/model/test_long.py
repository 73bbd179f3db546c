"""Memory is linear in the length: no tensor has the size length × length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sqat

LENGTH = 16384
MOST_MB = 200  # what may be taken on top of 1,024 tokens; one head's scores would be 1,074, a boolean mask 268

CHILD = """
import os
import sys
import torch
from sqat.model import Decoder
from sqat.config import ModelConfig

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3

def step(model, length, packed):
    documents = (torch.arange(length) // 700).unsqueeze(0) if packed else None
    hidden, _ = model.hidden_states(torch.zeros(1, length, dtype=torch.long), documents=documents)
    hidden.sum().backward()

torch.set_num_threads(1)
sizes = dict(vocab_size=41, hidden_size=8, num_layers=2, num_query_heads=1, num_kv_heads=1, head_dim=8,
             intermediate_size=8, context_length=1024)
for window, global_tokens, packed in [(None, 0, False), (128, 0, False), (128, 4, False), (128, 4, True)]:
    if not os.fork():
        model = Decoder(ModelConfig(**sizes, window=window, global_tokens=global_tokens))
        step(model, 1024, packed)
        before = peak()
        step(model, int(sys.argv[1]), packed)
        print(peak() - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_memory_of_a_training_step_is_linear():
    """With full attention, a window, global tokens too, and packed documents."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sqat.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, str(LENGTH)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    taken = [float(line) for line in done.stdout.split()]
    assert len(taken) == 4, done.stderr
    assert 0 < min(taken) <= max(taken) < MOST_MB
