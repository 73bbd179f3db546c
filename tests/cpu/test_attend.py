"""Attention by the compiled loop equals its definition, gradients too, over exactly the keys that each query sees."""

import pytest
import torch

from sqat import cpu as kernels
from sqat.cpu.attend import first_keys, is_band
from sqat.model.attend import attend, attend_naive
from sqat.model.mask import AttentionMask

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)

SHAPES = [(3, 5, 6, 3, 10), (2, 67, 4, 4, 16), (3, 131, 2, 1, 38), (1, 17, 3, 1, 7)]  # (B, T, H, K, C)


def documents(rows, length):
    return (torch.arange(length) >= torch.randint(1, length, (rows, 1))).long()


def causal(length, window=None):
    return AttentionMask(length, length, torch.device("cpu"), window=window).rows()


def results(compute, tensors, grad):
    inputs = [x.clone().requires_grad_() for x in tensors]
    out = compute(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("window", [None, 3])
def test_equals_the_definition(shape, packed, window):
    rows, length, heads, kv_heads, width = shape
    tensors = [2 * torch.randn(rows, count, length, width) for count in (heads, kv_heads, kv_heads)]
    grad = torch.randn(rows, heads, length, width)
    numbers, seen = documents(rows, length) if packed else None, causal(length, window)
    if numbers is not None:
        seen = seen & (numbers[:, None, :, None] == numbers[:, None, None, :])
    mask = AttentionMask(length, length, torch.device("cpu"), documents_BS=numbers, window=window)
    ours = results(lambda q, k, v: attend(q, k, v, mask=mask if packed or window else None), tensors, grad)
    exact = results(lambda q, k, v: attend_naive(q, k, v, seen), [x.double() for x in tensors], grad.double())
    torch.testing.assert_close(ours, [x.float() for x in exact], atol=2e-5, rtol=1e-5)


def test_training_takes_the_loop_and_a_prompt_does_not():
    q = torch.randn(2, 3, 67, 10, requires_grad=True)
    assert "TiledAttention" in type(attend(q, q, q).grad_fn).__name__
    with torch.no_grad():
        torch.testing.assert_close(attend(q, q, q), attend_naive(q, q, q, causal(67)))


def test_hidden_keys_count_for_nothing_and_nan_reaches_the_queries_that_see_it():
    """However large their scores or values."""
    q, k, v = (torch.ones(1, 1, 37, 16) for _ in range(3))
    k[:, :, 20:] = 1e4
    v[:, :, 20:] = 1e30
    out = attend(q.requires_grad_(), k, v)
    torch.testing.assert_close(out[:, :, :20], torch.ones(1, 1, 20, 16))
    k[0, 0, 5, 3] = torch.nan
    out = attend(q, k, v)
    assert out[0, 0, 5:].isnan().any()
    assert out[0, 0, :5].isfinite().all()


def test_scores_of_any_size_are_exact():
    q, k, v = 300 * torch.randn(1, 1, 37, 16), 300 * torch.randn(1, 1, 37, 16), torch.randn(1, 1, 37, 16)
    expected = attend_naive(q.double(), k.double(), v.double(), causal(37))
    torch.testing.assert_close(attend(q.requires_grad_(), k, v), expected.float(), atol=1e-3, rtol=1e-3)


def test_first_keys_are_those_of_the_rows():
    mask = AttentionMask(23, 23, torch.device("cpu"), documents_BS=documents(3, 23), window=5)
    assert torch.equal(first_keys(mask), mask.rows()[:, 0].long().argmax(dim=-1))
    assert not is_band(AttentionMask(5, 7, torch.device("cpu")))
    assert not is_band(AttentionMask(7, 7, torch.device("cpu"), first_key_B=torch.tensor([2])))
    assert not is_band(AttentionMask(7, 7, torch.device("cpu"), window=3, global_tokens=1))
