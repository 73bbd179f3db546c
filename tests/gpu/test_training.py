"""A training step on a GPU: as on a CPU, and never waited for."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sqat.config import ModelConfig
from sqat.data import batches as batches_module
from sqat.data.batches import Batches
from sqat.data.tokens import TokenFile
from sqat.model import Decoder
from sqat.train.step import TrainingLoss, train_step

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU here", allow_module_level=True)

V, T, ROWS = 312, 64, 16
MODEL = {
    "vocab_size": V,
    "hidden_size": 64,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 72,
    "context_length": T,
    "feedforward_bias": True,
    "head_bias": True,
}
EXPERTS = {"num_experts": 12, "experts_per_token": 2}
MODES = [{"mode": "packed"}, {"mode": "rows"}, {"mode": "rows", "padding_as_target": True}]


@pytest.fixture
def tokens():
    """Documents of 2 to 150 tokens, [BOS] … [EOS]."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 150, size=211)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(4, V, size=offsets[-1]).astype(np.uint16)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 2, 3
    return TokenFile(Path("in memory"), ids, offsets, lengths, V, int(lengths.sum()))


def experts_or_skip(moe):
    if moe and torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("experts without waiting need a GPU of compute capability 9 or 10")
    return EXPERTS if moe else {}


class Engine:
    """A model and its optimizer on a device, in bfloat16 autocast or not."""

    def __init__(self, config, device, bf16, compiled=False):
        torch.manual_seed(0)
        self.model = Decoder(ModelConfig.from_dict(config)).to(device).train()
        self.task: Any = TrainingLoss(self.model)
        if compiled:
            self.task = torch.compile(self.task, fullgraph=True, dynamic=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, fused=True)
        self.autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=bf16)

    def step(self, batch):
        total = torch.full((), batch.num_targets, device=batch.inputs.device)
        with self.autocast:
            return train_step(self.task, [batch], self.optimizer, total_targets=total, clip_norm=1.0)

    def losses(self, batches, steps):
        sums = [self.step(batch) for batch, _ in islice(batches.forever(), steps)]
        return [float(s["loss"] / s["targets"]) for s in sums]


@pytest.fixture
def _no_waiting():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_a_step_waits_for_nothing(tokens, moe, dropout, mode):
    """From making a batch to the update of the weights, once libraries are loaded and memory is taken."""
    engine = Engine({**MODEL, **experts_or_skip(moe), "feedforward_dropout": dropout}, "cuda", bf16=True)
    batches = Batches(tokens, batch_size=ROWS, context_length=T, device="cuda", **mode).forever()
    for batch, _ in islice(batches, 3):
        engine.step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    sums = [engine.step(batch) for batch, _ in islice(batches, 5)]
    torch.cuda.set_sync_debug_mode("default")
    assert all(s["loss"].isfinite() for s in sums)


@pytest.mark.usefixtures("_no_waiting")
def test_a_step_without_numbers_changes_nothing_and_is_not_waited_for(tokens):
    engine = Engine(MODEL, "cuda", bf16=True)
    batches = Batches(tokens, batch_size=ROWS, context_length=T, device="cuda").forever()
    for batch, _ in islice(batches, 3):
        assert engine.step(batch)["skipped"] == 0
    state = engine.optimizer.state
    before = [t.clone() for p in engine.model.parameters() for t in (p, *state[p].values())]
    spoil = engine.model.embedding.weight.register_hook(lambda grad: grad * float("nan"))
    batch, _ = next(batches)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    sums = engine.step(batch)
    torch.cuda.set_sync_debug_mode("default")
    spoil.remove()
    assert sums["skipped"] == 1
    after = [t for p in engine.model.parameters() for t in (p, *state[p].values())]
    assert all(torch.equal(*pair) for pair in zip(after, before, strict=True))
    assert engine.step(next(batches)[0])["skipped"] == 0
    assert not torch.equal(engine.model.embedding.weight, before[0])


@pytest.mark.parametrize("room", [True, False], ids=["tokens on the GPU", "tokens on the host"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_batches_are_those_of_the_cpu(tokens, mode, room, monkeypatch):
    if not room:
        monkeypatch.setattr(batches_module, "MEMORY_SHARE", 0.0)
    made, expected = (
        Batches(tokens, batch_size=ROWS, context_length=T, device=device, **mode) for device in ("cuda", "cpu")
    )
    assert made._store.device.type == ("cuda" if room else "cpu")
    for (a, _), (b, _) in islice(zip(made.forever(), expected.forever(), strict=False), 2 * len(expected) + 1):
        assert a.counted == b.counted
        for part, other in zip(a[:4], b[:4], strict=True):
            assert (part is None) == (other is None)
            assert part is None or (part.is_cuda and torch.equal(part.cpu(), other))


def losses(tokens, config, steps, device="cuda", **kind):
    batches = Batches(tokens, batch_size=ROWS, context_length=T, device=device)
    return Engine(config, device, **kind).losses(batches, steps)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_float32_trains_as_on_a_cpu(tokens, moe):
    config = {**MODEL, **(EXPERTS if moe else {})}
    found, expected = (losses(tokens, config, 20, device, bf16=False) for device in ("cuda", "cpu"))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_bfloat16_stays_near_float32(tokens, moe):
    found, expected = (losses(tokens, {**MODEL, **experts_or_skip(moe)}, 50, bf16=bf16) for bf16 in (True, False))
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_compiled_as_a_whole(tokens, moe):
    """One graph without a break, however many targets a batch has, and losses of the step that is not compiled."""
    config = {**MODEL, **experts_or_skip(moe)}
    torch._dynamo.utils.counters.clear()
    found, expected = (losses(tokens, config, 12, bf16=True, compiled=compiled) for compiled in (True, False))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert found == pytest.approx(expected, rel=0.01)
