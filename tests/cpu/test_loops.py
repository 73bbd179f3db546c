"""Every compiled loop equals the few lines of torch that it stands for, gradients too; its dropout is dropout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sqat import cpu as kernels
from sqat.model.norm import RMSNorm
from sqat.model.rope import rotary_tables, rotate, rotate_naive

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)

from sqat.cpu.loops import dropped_by, swiglu, swiglu_backward, weighted_sum, weighted_sum_backward

EXACT = {"atol": 1e-5, "rtol": 1e-5}
SHAPES = [(3, 67, 5, 14), (2, 401, 3, 38)]  # (B, T, H, C): in one thread, and in several


def with_gradients(function, x, grad, *weights):
    inputs = x.clone().requires_grad_()
    out = function(inputs)
    return out, *torch.autograd.grad(out, (inputs, *weights), grad)


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 67, 131)])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_norm_equals_torch(shape, eps):
    ours, theirs = RMSNorm(shape[-1], eps=eps), nn.RMSNorm(shape[-1], eps=eps)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x, grad = torch.randn(shape), torch.randn(shape)
    results = [with_gradients(norm, x, grad, norm.weight) for norm in (ours, theirs)]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-5)  # gradients of weights are sums over many rows
    assert "RMSNorm" in type(ours(x.requires_grad_()).grad_fn).__name__


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_positions", [False, True])
def test_rotation_equals_its_definition(shape, own_positions):
    rows, length, _, head_dim = shape
    positions = torch.randint(1000, (rows, length)) if own_positions else torch.arange(length)
    tables = rotary_tables(positions, head_dim, 10_000.0)
    x, grad = torch.randn(shape).transpose(1, 2), torch.randn(shape).transpose(1, 2)
    results = [with_gradients(lambda x, turn=turn: turn(x, tables), x, grad) for turn in (rotate, rotate_naive)]
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_changes_types(shape):
    tables = rotary_tables(torch.arange(shape[1]), shape[3], 10_000.0)
    x = torch.randn(shape).bfloat16().transpose(1, 2).requires_grad_()
    out = rotate(x, tables, torch.float32)
    torch.testing.assert_close(out.detach(), rotate_naive(x.detach().float(), tables), **EXACT)
    out.backward(torch.ones_like(out))
    assert x.grad.dtype == torch.bfloat16
    back = rotate(rotate(x.detach().requires_grad_(), tables, torch.float32), (tables[0], -tables[1]), torch.bfloat16)
    torch.testing.assert_close(back.detach(), x.detach(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(601, 1, 7), (601, 2, 131), (997, 3, 16)])  # (N, k, D)
def test_sums_of_experts_rows_equal_torch(shape, dtype):
    tokens, k, width = shape
    place = torch.randperm(tokens * k + 5)[: tokens * k].view(tokens, k)  # five rows that nobody has
    y, weights, grad = torch.randn(tokens * k + 5, width).to(dtype), torch.rand(tokens, k), torch.randn(tokens, width)
    leaves = y.float().requires_grad_(), weights.clone().requires_grad_()
    expected = (leaves[0][place] * leaves[1].unsqueeze(-1)).sum(dim=1)
    d_y, d_weights = torch.autograd.grad(expected, leaves, grad)
    torch.testing.assert_close(weighted_sum(y, place, weights), expected.detach(), atol=1e-5, rtol=1e-5)
    found = weighted_sum_backward(grad, y, place, weights)
    torch.testing.assert_close(found, (d_y.to(dtype), d_weights), atol=1e-4, rtol=1e-5)


ROWS, WIDTH = 257, 131
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2}}


def forward(hidden, dropped, first_row=0, bias=None):
    return swiglu(hidden, torch.zeros(2 * WIDTH) if bias is None else bias, first_row, dropped)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gated_silu_equals_torch(dtype, p, biased):
    hidden, grad = (3 * torch.randn(ROWS, 2 * WIDTH)).to(dtype), torch.randn(ROWS, WIDTH).to(dtype)
    dropped = dropped_by(p, 7)
    kept = forward(torch.ones_like(hidden), dropped) != 0
    bias = torch.randn(2 * WIDTH) if biased else torch.zeros(2 * WIDTH)
    exact = hidden.float().requires_grad_()
    linear, gate = (exact + bias).chunk(2, dim=1)
    expected = linear * F.silu(gate) * kept
    expected.backward(grad.float())

    found = forward(hidden, dropped, bias=bias)
    torch.testing.assert_close(found.float(), expected.detach(), **TOLERANCE[dtype])
    d_hidden, again, d_bias = swiglu_backward(grad.clone(), hidden, bias, 0, dropped)
    torch.testing.assert_close(d_bias, exact.grad.sum(dim=0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(d_hidden.float(), exact.grad, **TOLERANCE[dtype])
    torch.testing.assert_close(again.float(), expected.detach(), **TOLERANCE[dtype])


def test_extreme_gates():
    hidden = torch.ones(4, 2 * WIDTH)
    hidden[:, WIDTH:] = torch.tensor([-1e4, -90.0, 90.0, 1e4])[:, None]
    torch.testing.assert_close(forward(hidden, dropped_by(0, 7))[:, 0], torch.tensor([0.0, 0.0, 90.0, 1e4]))
    hidden[0, WIDTH] = torch.nan
    assert forward(hidden, dropped_by(0, 7))[0, 0].isnan()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropped_share(p):
    ones = torch.ones(4001, 2 * WIDTH)
    kept = (forward(ones, dropped_by(p, 7)) != 0).float()
    spread = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * spread
    for axis in (0, 1):  # neighbours are independent
        first, second = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        correlation = ((first - 1 + p) * (second - 1 + p)).mean().item() / (p * (1 - p))
        assert abs(correlation) < 5 / kept.numel() ** 0.5
    other = (forward(ones, dropped_by(p, 8)) != 0).float()
    assert abs(((kept - 1 + p) * (other - 1 + p)).mean().item()) / (p * (1 - p)) < 5 / kept.numel() ** 0.5


def test_dropped_elements_depend_on_the_seed_and_not_on_the_pieces():
    ones, dropped = torch.ones(ROWS, 2 * WIDTH), dropped_by(0.3, 7)
    pieces = [forward(ones[start : start + 101], dropped, start) for start in range(0, ROWS, 101)]
    assert torch.equal(forward(ones, dropped), torch.cat(pieces))
    same, too, other = (forward(ones, dropped_by(0.3, seed)) for seed in (2**62 + 5, 2**62 + 5, 2**61 + 5))
    assert torch.equal(same, too)
    assert not torch.equal(same, other)
