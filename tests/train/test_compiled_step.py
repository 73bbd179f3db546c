"""The training step as one graph, as `train.compile` takes it on GPUs; `aot_eager` traces all, and compiles nothing."""

import pytest
import torch

from sqat.cuda.experts import run_experts_grouped
from sqat.data.batches import IGNORE, Batch
from sqat.model import dispatch
from sqat.model.dispatch import implements
from sqat.train.step import TrainingLoss

ROWS, T, V = 3, 16, 41


@pytest.fixture
def _as_on_a_gpu(monkeypatch):
    """Ways of computing that read nothing from the device."""
    monkeypatch.setitem(dispatch._implementations, ("run_experts", "cpu"), [])
    implements("run_experts", "cpu", compiles=True)(run_experts_grouped)
    monkeypatch.setattr("sqat.train.loss._counting_waits", lambda _: True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def packed(last):
    """Rows of two documents, with `last` targets missing, so that every batch has another number of them."""
    inputs = torch.randint(4, V, (ROWS, T))
    targets = inputs.roll(-1, dims=1)
    targets[:, 6] = targets[:, -last:] = IGNORE
    documents = (torch.arange(T) > 6).long().repeat(ROWS, 1)
    positions = torch.arange(T) - 7 * documents
    return Batch(inputs, targets, positions, documents, ROWS * (T - 1 - last))


@pytest.mark.slow
@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(
    ("moe", "bf16", "window"),
    [(False, False, {}), (True, True, {}), (False, False, {"window": 5, "global_tokens": 2})],
    ids=["dense", "experts, bfloat16", "window"],
)
def test_any_number_of_targets_is_one_graph(tiny_model, moe, bf16, window):
    sizes = {"num_layers": 1, "hidden_size": 24, "intermediate_size": 16, "feedforward_bias": True, "head_bias": True}
    model = tiny_model(moe, **sizes, **window).train()
    task = TrainingLoss(model)
    compiled = torch.compile(task, backend="aot_eager", fullgraph=True, dynamic=False)

    def run(task, batch):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, sums = task(batch, torch.full((), batch.num_targets), 1.0)
            loss.backward()
        return [loss.detach(), sums["correct"], *(parameter.grad.clone() for parameter in model.parameters())]

    for last in (1, 2, 3):
        batch = packed(last)
        for a, b in zip(run(compiled, batch), run(task, batch), strict=True):
            assert (a - b).abs().max() <= (0.02 if bf16 else 1e-5) * b.abs().max()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
