"""Sums of experts' rows by a compiled loop are those of torch's operators, gradients too."""

import pytest
import torch

from sqat import cpu as kernels
from sqat.cpu import combine as combining
from sqat.cpu import threads
from sqat.cpu.combine import combine, combine_backward

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(601, 1, 7), (601, 2, 131), (997, 3, 16)])  # (N, k, D)
def test_loops_equal_operators(monkeypatch, shape, dtype):
    tokens, k, width = shape
    place = torch.randperm(tokens * k + 5)[: tokens * k].view(tokens, k)  # five rows that nobody has
    y, weights, grad = torch.randn(tokens * k + 5, width).to(dtype), torch.rand(tokens, k), torch.randn(tokens, width)
    found = combine(y, place, weights), *combine_backward(grad, y, place, weights)
    monkeypatch.setattr(threads, "_installed", lambda: False)
    expected = combine(y, place, weights), *combine_backward(grad, y, place, weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found[1].dtype == dtype


def test_few_tokens_are_not_worth_compiling(monkeypatch):
    monkeypatch.setattr(combining.kernels, "available", lambda: pytest.fail("asked for"))
    assert combine(torch.ones(3, 2), torch.tensor([[0, 2]]), torch.ones(1, 2)).tolist() == [[2, 2]]
