"""The experts' arithmetic, each way to compute it held to the naive loop over experts, gradients too. What GPUs run is
checked with the definition of their kernels; tests/gpu has the kernels.

Shape letters as in sqat.model.moe.
"""

from typing import Any, NamedTuple

import pytest
import torch

from sqat import cpu as kernels
from sqat.config import ACTIVATIONS
from sqat.cpu import experts as on_cpus
from sqat.cuda import experts as on_gpus
from sqat.model.moe import Experts, run_experts, run_experts_naive, sort_by_expert

N, D, F, E = 31, 11, 5, 7

ROUTINGS = {  # name: (E, experts of each token)
    "two of seven": (E, lambda: torch.rand(N, E).topk(2).indices),
    "some never chosen": (E, lambda: torch.tensor([[5, 1]]).expand(N, 2)),
    "last one never chosen": (3, lambda: torch.zeros(N, 1, dtype=torch.long)),
    "one of seven": (E, lambda: (torch.arange(N) % 3 * 2).unsqueeze(1)),
    "the only expert": (1, lambda: torch.zeros(N, 1, dtype=torch.long)),
    "all experts": (3, lambda: torch.arange(3).expand(N, 3)),
    "multiples of a block": (3, lambda: torch.arange(24).view(-1, 1) % 3),
    "one token": (E, lambda: torch.tensor([[6, 2]])),
    "hundreds of experts": (401, lambda: torch.rand(5, 401).topk(3).indices),
    "no tokens": (E, lambda: torch.zeros(0, 2, dtype=torch.long)),
}


class Way(NamedTuple):
    run: Any
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-11


WAYS = {
    "plain": Way(run_experts.plain),
    "loops": Way(on_cpus.run_experts, torch.float32, 1e-5),
    "loops, rows filled up": Way(on_cpus.run_experts, torch.float32, 1e-5),
    "grouped products": Way(on_gpus.run_experts_grouped),
    "batched products": Way(on_gpus.run_experts_few),
}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if "loops" in request.param and not kernels.available():
        pytest.skip("numba or GNU OpenMP is missing")
    if "filled" in request.param:
        monkeypatch.setattr(on_cpus, "_block", lambda *_: 5)
    monkeypatch.setattr(on_gpus, "grouped_mm", on_gpus.grouped_mm_naive)  # any type and width
    return WAYS[request.param]


def draw(experts_Nk, num_experts, dtype=torch.float64, gated=True, biased=True, sizes=(D, F)):
    """(x, weights of the choices, expert weights), all wanting gradients."""
    width, hidden = sizes
    inner = hidden * (2 if gated else 1)
    shapes = ((num_experts, inner, width), (num_experts, inner), (num_experts, width, hidden), (num_experts, width))
    weights = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    if not biased:
        weights[1::2] = None, None
    x = torch.randn(len(experts_Nk), width, dtype=dtype, requires_grad=True)
    share = torch.rand(experts_Nk.shape, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    return x, share, Experts(*weights, gated=gated)


def with_gradients(run, x, experts_Nk, share, weights):
    out = run(x, experts_Nk, share, weights)
    scale = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    leaves = [leaf for leaf in (x, share, *weights[:4]) if leaf is not None]
    return [out, *torch.autograd.grad((out * scale).sum(), leaves)]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):  # relative to the largest entry: sums of many terms round alike
        assert a.shape == b.shape
        assert a.numel() == 0 or (a - b).abs().max() <= tolerance * b.abs().max()


def assert_equals_naive(way, x, share, weights, experts_Nk):
    arguments = (x, experts_Nk, share, weights)
    found, expected = (with_gradients(run, *arguments) for run in (way.run, run_experts_naive))
    assert_close(found, expected, way.tolerance)


@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_naive_loop(way, activation, gated, biased):
    special = way.run in (on_cpus.run_experts, on_gpus.run_experts_grouped)
    if special and not (gated and activation in ("silu", "swish")):
        return
    experts_Nk = ROUTINGS["two of seven"][1]()
    x, share, weights = draw(experts_Nk, E, way.dtype, gated, biased)
    assert_equals_naive(way, x, share, weights._replace(activation=activation), experts_Nk)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_routing(way, routing):
    num_experts, make = ROUTINGS[routing]
    experts_Nk = make()
    if len(experts_Nk) == 0 and way.run is not run_experts.plain:
        return  # nobody asks them
    assert_equals_naive(way, *draw(experts_Nk, num_experts, way.dtype), experts_Nk)


@pytest.mark.parametrize("run", [run_experts.plain, on_gpus.run_experts_grouped], ids=["plain", "grouped"])
def test_backward_uses_the_dropout_of_its_forward(run, monkeypatch):
    """With the generator set back each time, gradients are finite differences."""
    monkeypatch.setattr(on_gpus, "grouped_mm", on_gpus.grouped_mm_naive)
    experts_Nk = torch.tensor([[0, 2], [2, 1], [2, 0], [1, 2], [0, 1]])
    x, share, weights = draw(experts_Nk, 4, sizes=(3, 2))  # expert 3 has no tokens

    def compute(x, share, *weights):
        torch.manual_seed(3)
        return run(x, experts_Nk, share, Experts(*weights, dropout=0.4))

    assert torch.autograd.gradcheck(compute, (x, share, *weights[:4]))


def test_backward_of_loops_uses_the_dropout_of_its_forward(way):
    """Along a random direction, the slope is the gradient's: the layer is linear in its second matrix."""
    if way.run is not on_cpus.run_experts:
        return
    experts_Nk = ROUTINGS["two of seven"][1]()
    x, share, weights = draw(experts_Nk, E, way.dtype)
    step, results = torch.randn_like(weights.fc2_EDF), []
    for move in (0.0, 1.0):
        torch.manual_seed(3)
        fc2 = weights.fc2_EDF + move * step
        results.append(way.run(x, experts_Nk, share, weights._replace(fc2_EDF=fc2, dropout=0.4)).sum())
    slope = (torch.autograd.grad(results[0], weights.fc2_EDF)[0] * step).sum()
    torch.testing.assert_close(results[1] - results[0], slope, rtol=1e-3, atol=1e-3)


def test_dropout_keeps_the_mean(way):
    if way.run is on_gpus.run_experts_few:
        return  # for decoding alone
    x, share, weights = draw(torch.tensor([[4, 1]]), E, way.dtype)
    rows, experts_Nk = 3000, torch.tensor([[4, 1]])
    many = x.expand(rows, D), experts_Nk.expand(rows, 2), share.expand(rows, 2)
    kept, dropped = way.run(*many, weights), way.run(*many, weights._replace(dropout=0.3))
    error = (dropped.mean(dim=0) - kept[0]) / (dropped.std(dim=0) / rows**0.5)
    assert dropped.std(dim=0).min() > 0
    assert error.abs().max() < 5


def test_frozen_experts_have_no_gradient(way):
    experts_Nk = ROUTINGS["two of seven"][1]()
    x, share, weights = draw(experts_Nk, E, way.dtype)
    frozen = Experts(*(tensor.detach() for tensor in weights[:4]))
    way.run(x, experts_Nk, share, frozen).sum().backward()
    assert x.grad is not None
    assert frozen.fc1_EID.grad is None


def test_autocast_is_close_and_keeps_types(monkeypatch, way):
    monkeypatch.undo()  # torch's own kernel
    experts_Nk = ROUTINGS["two of seven"][1]()
    arguments = draw(experts_Nk, E, torch.float32, sizes=(24, 16))
    expected = with_gradients(run_experts_naive, arguments[0], experts_Nk, *arguments[1:])
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(way.run, arguments[0], experts_Nk, *arguments[1:])
    assert not found[0].equal(expected[0])
    assert all(a.dtype == torch.float32 for a in found)
    assert_close(found, expected, 0.05)


@pytest.mark.parametrize("block", [1, 5, 8, 64])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_sorted_rows(routing, block):
    """Every selection has a row of its own among its expert's; groups are whole blocks in a buffer of known size."""
    num_experts, make = ROUTINGS[routing]
    experts_Nk = make()
    token, place, ends = sort_by_expert(experts_Nk, num_experts, block)
    assert place.unique().numel() == experts_Nk.numel()
    assert torch.equal(token[place], torch.arange(len(experts_Nk)).unsqueeze(1).expand(experts_Nk.shape))
    counts = ends.diff(prepend=ends[:1] * 0)
    assert torch.equal(torch.repeat_interleave(torch.arange(num_experts), counts)[place], experts_Nk)
    chosen = experts_Nk.flatten().bincount(minlength=num_experts)
    assert (counts % block == 0).all()
    assert (counts - chosen < block).all() or block > 1
    assert (counts >= (block if block > 1 else 0)).all()
    assert ends[-1] <= len(token) == experts_Nk.numel() if block == 1 else ends[-1] <= len(token)
