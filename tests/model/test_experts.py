"""The experts' arithmetic: `run_experts`, its hand-written backward pass included, is the naive loop over experts.

Shape letters as in sqat.model.experts.
"""

import pytest
import torch

from sqat.config import ACTIVATIONS
from sqat.model.experts import ExpertWeights, run_experts, run_experts_naive

N, D, F, E = 17, 11, 5, 7

ROUTINGS = {  # name: (E, experts of each token)
    "two of seven": (
        E,
        torch.stack([torch.randperm(E, generator=torch.Generator().manual_seed(i))[:2] for i in range(N)]),
    ),
    "some never chosen": (E, torch.tensor([[1, 5]]).expand(N, 2)),
    "one of seven": (E, (torch.arange(N) % 3 * 2).unsqueeze(1)),
    "the only expert": (1, torch.zeros(N, 1, dtype=torch.long)),
    "all experts": (3, torch.arange(3).expand(N, 3)),
    "no tokens": (E, torch.zeros(0, 2, dtype=torch.long)),
}


def draw(experts_Nk, num_experts, gated=True, biased=True, dtype=torch.float64, sizes=(D, F)):
    """(x, weights of the choices, expert weights), all wanting gradients."""
    width, hidden = sizes
    inner = hidden * (2 if gated else 1)
    shapes = [(num_experts, inner, width), (num_experts, inner), (num_experts, width, hidden), (num_experts, width)]
    leaves = [
        torch.randn(shape, dtype=dtype, requires_grad=True)
        for shape in [(len(experts_Nk), width), experts_Nk.shape, *shapes]
    ]
    x, weights_Nk, fc1, fc1_bias, fc2, fc2_bias = leaves
    return x, weights_Nk, ExpertWeights(fc1, fc1_bias if biased else None, fc2, fc2_bias if biased else None)


def with_gradients(function, x, experts_Nk, weights_Nk, weights, *options):
    out = function(x, experts_Nk, weights_Nk, weights, *options)
    scale = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    leaves = [leaf for leaf in (x, weights_Nk, *weights) if leaf is not None]
    return out, *torch.autograd.grad((out * scale).sum(), leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_naive_loop(activation, gated, biased, dtype, tolerance):
    num_experts, experts_Nk = ROUTINGS["two of seven"]
    x, weights_Nk, weights = draw(experts_Nk, num_experts, gated, biased, dtype)
    found, expected = (
        with_gradients(f, x, experts_Nk, weights_Nk, weights, activation, gated)
        for f in (run_experts, run_experts_naive)
    )
    for a, b in zip(found, expected, strict=True):  # relative to the largest entry: sums of many terms round alike
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_routing(routing):
    num_experts, experts_Nk = ROUTINGS[routing]
    x, weights_Nk, weights = draw(experts_Nk, num_experts)
    found, expected = (
        with_gradients(f, x, experts_Nk, weights_Nk, weights, "silu", True) for f in (run_experts, run_experts_naive)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu", "sigmoid", "linear"])
def test_gradients_are_those_of_finite_differences(activation, gated, dropout):
    """With dropout, too, if the generator is set back each time: backward uses the mask of its forward."""
    experts_Nk = torch.tensor([[0, 2], [2, 1], [2, 0], [1, 2], [0, 1]])
    x, weights_Nk, weights = draw(experts_Nk, 4, gated, sizes=(3, 2))  # expert 3 has no tokens

    def run(x, weights_Nk, *weights):
        torch.manual_seed(3)
        return run_experts(x, experts_Nk, weights_Nk, ExpertWeights(*weights), activation, gated, dropout)

    assert torch.autograd.gradcheck(run, (x, weights_Nk, *weights))


def test_dropout_keeps_the_mean():
    x, weights_Nk, weights = draw(torch.tensor([[4, 1]]), E)
    rows = 3000
    experts_Nk, many = torch.tensor([[4, 1]]).expand(rows, 2), (x.expand(rows, D), weights_Nk.expand(rows, 2))
    kept = run_experts(many[0], experts_Nk, many[1], weights, "silu", True)
    dropped = run_experts(many[0], experts_Nk, many[1], weights, "silu", True, 0.3)
    error = (dropped.mean(dim=0) - kept[0]) / (dropped.std(dim=0) / rows**0.5)
    assert dropped.std(dim=0).min() > 0
    assert error.abs().max() < 5


def test_only_wanted_gradients_are_asked_for():
    _, experts_Nk = ROUTINGS["two of seven"]
    x, weights_Nk, weights = draw(experts_Nk, E)
    frozen = ExpertWeights(*(tensor.detach() for tensor in weights))
    run_experts(x, experts_Nk, weights_Nk, frozen, "silu", True).sum().backward()
    assert x.grad is not None
    assert frozen.fc1_EID.grad is None


def test_autocast_is_close_and_keeps_types():
    _, experts_Nk = ROUTINGS["two of seven"]
    arguments = draw(experts_Nk, E, dtype=torch.float32)
    expected = with_gradients(run_experts, arguments[0], experts_Nk, *arguments[1:], "silu", True)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(run_experts, arguments[0], experts_Nk, *arguments[1:], "silu", True)
    assert not found[0].equal(expected[0])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 0.03 * b.abs().max()
