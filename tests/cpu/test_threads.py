"""Compiled loops give the same in any number of threads, and torch's operators stand in where they cannot run."""

import os
import subprocess
import sys

import pytest
import torch

from sqat import cpu as kernels
from sqat import preset
from sqat.cpu import threads
from sqat.data.batches import Batch
from sqat.model import Decoder
from sqat.train.step import TrainingLoss

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)

from sqat.cpu.loops import rms_norm


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 997])
def test_every_row_is_done_in_any_number_of_threads(thread_count, monkeypatch, rows):
    monkeypatch.setattr(threads, "SERIAL_ELEMENTS", 0)
    x, weight, outs = torch.randn(rows, 13), torch.randn(13), []
    for count in (1, 2, 3, 5):
        thread_count(count)
        outs.append(rms_norm(x, weight, 1e-5)[0])
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("bf16", [False, True])
def test_training_loss_is_the_same_without_loops(monkeypatch, bf16):
    config = preset("sqat-mm").replace(vocab_size=307, num_layers=2, feedforward_dropout=0.0)
    model = Decoder(config)
    tokens = torch.randint(4, 307, (5, 211))
    batch = Batch(tokens, tokens.roll(-1, 1), None, None)
    results = []
    for there in (True, False):
        monkeypatch.setattr(threads, "_installed", lambda there=there: there)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = TrainingLoss(model)(batch, 1055, 1.0)[0]
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    tolerance = {"atol": 2e-3, "rtol": 5e-2} if bf16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(*results, **tolerance)


def test_a_read_only_cache_folder_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert threads.cache_folder.__wrapped__() is None


@pytest.mark.slow
def test_compiled_now_or_kept_from_before_is_the_same_to_the_bit(tmp_path):
    program = """
import torch
from sqat.cpu.loops import cross_entropy, rms_norm_backward
torch.manual_seed(0)
logits, d_bias = torch.randn(307, 311), torch.zeros(torch.get_num_threads(), 311)
results = [*cross_entropy(logits, torch.randn(311), torch.randint(311, (307,)), d_bias), logits, d_bias]
results += rms_norm_backward(torch.randn(307, 67), torch.randn(307, 67), torch.randn(67), torch.rand(307))
print([result.double().sum().item().hex() for result in results])
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True).stdout
        for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbc"))
    assert first == second
