"""The compiled gated SiLU equals torch's, and its dropout is dropout."""

import pytest
import torch
import torch.nn.functional as F

from sqat import cpu as kernels

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)

from sqat.cpu.swiglu import Dropped, swiglu, swiglu_backward

ROWS, WIDTH = 257, 131
TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2}}


def forward(hidden, dropped, first_row=0, bias=None):
    return swiglu(hidden, bias, first_row, dropped, hidden.new_empty(len(hidden), WIDTH))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_torch(dtype, p, biased):
    hidden, grad = (3 * torch.randn(ROWS, 2 * WIDTH)).to(dtype), torch.randn(ROWS, WIDTH).to(dtype)
    dropped = Dropped(p, 7)
    kept = forward(torch.ones_like(hidden), dropped) != 0
    bias = torch.randn(2 * WIDTH) if biased else None
    exact = hidden.float().requires_grad_()
    linear, gate = (exact + bias if biased else exact).chunk(2, dim=1)
    expected = linear * F.silu(gate) * kept
    expected.backward(grad.float())

    found = forward(hidden, dropped, bias=bias)
    torch.testing.assert_close(found.float(), expected.detach(), **TOLERANCE[dtype])
    again, d_hidden = grad.clone(), torch.empty_like(hidden)
    d_bias = swiglu_backward(again, hidden, bias, 0, dropped, d_hidden)
    torch.testing.assert_close(d_bias, exact.grad.sum(dim=0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(d_hidden.float(), exact.grad, **TOLERANCE[dtype])
    torch.testing.assert_close(again.float(), expected.detach(), **TOLERANCE[dtype])


def test_extreme_gates():
    hidden = torch.ones(4, 2 * WIDTH)
    hidden[:, WIDTH:] = torch.tensor([-1e4, -90.0, 90.0, 1e4])[:, None]
    torch.testing.assert_close(forward(hidden, Dropped(0, 7))[:, 0], torch.tensor([0.0, 0.0, 90.0, 1e4]))
    hidden[0, WIDTH] = torch.nan
    assert forward(hidden, Dropped(0, 7))[0, 0].isnan()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropped_share(p):
    ones = torch.ones(4001, 2 * WIDTH)
    kept = (forward(ones, Dropped(p, 7)) != 0).float()
    spread = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * spread
    for axis in (0, 1):  # neighbours are independent
        first, second = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        correlation = ((first - 1 + p) * (second - 1 + p)).mean().item() / (p * (1 - p))
        assert abs(correlation) < 5 / kept.numel() ** 0.5
    other = (forward(ones, Dropped(p, 8)) != 0).float()
    assert abs(((kept - 1 + p) * (other - 1 + p)).mean().item()) / (p * (1 - p)) < 5 / kept.numel() ** 0.5


def test_dropped_elements_do_not_depend_on_the_pieces():
    ones, dropped = torch.ones(ROWS, 2 * WIDTH), Dropped(0.3, 7)
    pieces = [forward(ones[start : start + 101], dropped, start) for start in range(0, ROWS, 101)]
    assert torch.equal(forward(ones, dropped), torch.cat(pieces))


def test_seed_decides():
    ones = torch.ones(ROWS, 2 * WIDTH)
    same, too, other = (forward(ones, Dropped(0.3, seed)) for seed in (2**62 + 5, 2**62 + 5, 2**61 + 5))
    assert torch.equal(same, too)
    assert not torch.equal(same, other)
