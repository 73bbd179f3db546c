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
import sys
import torch
from sqat.model import Decoder
from sqat.config import ModelConfig

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3

window, global_tokens, packed, length = (int(argument) for argument in sys.argv[1:])
torch.set_num_threads(1)
config = ModelConfig(vocab_size=41, hidden_size=8, num_layers=2, num_query_heads=1, num_kv_heads=1, head_dim=8,
                     intermediate_size=8, context_length=1024, window=window or None, global_tokens=global_tokens)
model = Decoder(config)

def step(length):
    documents = (torch.arange(length) // 700).unsqueeze(0) if packed else None
    hidden, _ = model.hidden_states(torch.zeros(1, length, dtype=torch.long), documents=documents)
    hidden.sum().backward()

step(1024)
before = peak()
step(length)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize(
    ("window", "global_tokens", "packed"),
    [(0, 0, 0), (128, 0, 0), (128, 4, 0), (128, 4, 1)],
    ids=["full", "window", "window and global tokens", "window, global tokens, packed"],
)
def test_memory_of_a_training_step_is_linear(window, global_tokens, packed):
    arguments = [str(n) for n in (window, global_tokens, packed, LENGTH)]
    source = Path(sqat.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < MOST_MB
