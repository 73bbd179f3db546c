"""Compiled RMSNorm and rotation equal their definitions, gradients too."""

import pytest
import torch
from torch import nn

from sqat import cpu as kernels
from sqat.model.norm import RMSNorm
from sqat.model.rope import rotary_tables, rotate, rotate_naive

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)

EXACT = {"atol": 1e-5, "rtol": 1e-5}
SHAPES = [(3, 67, 5, 14), (2, 401, 3, 38)]  # (B, T, H, C): in one thread, and in several


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 67, 131)])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_norm_equals_torch(shape, eps):
    ours, theirs = RMSNorm(shape[-1], eps=eps), nn.RMSNorm(shape[-1], eps=eps)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x, grad = torch.randn(shape), torch.randn(shape)
    results = []
    for norm in (ours, theirs):
        inputs = x.clone().requires_grad_()
        out = norm(inputs)
        out.backward(grad)
        results.append((out.detach(), inputs.grad, norm.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)  # gradients of weights are sums over many rows
    assert "RMSNorm" in type(ours(x.requires_grad_()).grad_fn).__name__


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_positions", [False, True])
def test_rotation_equals_its_definition(shape, own_positions):
    rows, length, _, head_dim = shape
    positions = torch.randint(1000, (rows, length)) if own_positions else torch.arange(length)
    tables = rotary_tables(positions, head_dim, 10_000.0)
    x, grad = torch.randn(shape).transpose(1, 2), torch.randn(shape).transpose(1, 2)
    results = []
    for turn in (rotate, rotate_naive):
        inputs = x.clone().requires_grad_()
        out = turn(inputs, tables)
        out.backward(grad)
        results.append((out.detach(), inputs.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


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
