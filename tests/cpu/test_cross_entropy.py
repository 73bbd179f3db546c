"""The compiled cross-entropy equals the one by torch's softmax."""

import pytest
import torch

from sqat import cpu as kernels
from sqat.data.batches import IGNORE
from sqat.train import loss

if not kernels.available():
    pytest.skip("numba or GNU OpenMP is missing", allow_module_level=True)

from sqat.cpu.loops import cross_entropy

ROWS = 211


def example(size, dtype=torch.float32):
    targets = torch.randint(size, (ROWS,))
    targets[::7] = IGNORE
    return (3 * torch.randn(ROWS, size)).to(dtype), torch.randn(size), targets


def both(logits, bias, targets, train):
    size = logits.shape[1]
    by_loop, by_softmax = logits.clone(), logits.clone()
    d_bias_T = torch.zeros(torch.get_num_threads(), size)
    d_bias = torch.zeros(size)
    loop = cross_entropy(by_loop, bias, targets, d_bias_T if train else None)
    softmax = loss.cross_entropy.plain(by_softmax, bias, targets, train, d_bias if train else None)
    real = (targets != IGNORE).unsqueeze(1)
    return (*loop, by_loop * real, d_bias_T.sum(0)), (*softmax, by_softmax * real, d_bias)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("size", [1, 2, 67, 5003])
def test_equals_softmax(size, dtype, rtol, train):
    torch.testing.assert_close(*both(*example(size, dtype), train), atol=1e-5, rtol=rtol)


def test_equal_far_apart_and_nan_logits():
    _, hits = cross_entropy(torch.zeros(3, 5), torch.zeros(5), torch.tensor([0, 1, 4]), None)
    assert hits.tolist() == [True, False, False]  # equal ones count for the first
    logits = torch.tensor([[0.0, 1e4, -1e4]] * 3)
    losses, _ = cross_entropy(logits, torch.zeros(3), torch.tensor([0, 1, 2]), None)
    torch.testing.assert_close(losses, torch.tensor([1e4, 0.0, 2e4]))
    logits = torch.zeros(2, 67)
    logits[1, 5] = torch.nan
    losses, _ = cross_entropy(logits, torch.zeros(67), torch.tensor([3, 3]), None)
    assert losses.isnan().tolist() == [False, True]
