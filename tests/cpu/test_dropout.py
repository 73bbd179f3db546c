import pytest
import torch

from sqat.cpu.dropout import dropout_mask
from sqat.model.feedforward import dropout


@pytest.mark.parametrize("p", [0.1, 0.375, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_has_two_values_the_right_share_and_mean_one(p, dtype):
    mask = dropout_mask(torch.empty(317, 401, dtype=dtype), p)
    assert (mask.shape, mask.dtype) == ((317, 401), dtype)
    low, high = mask.unique().tolist()
    assert low == 0
    assert high == pytest.approx(1 / (1 - p), rel=2**-7)
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert (mask == 0).double().mean().item() == pytest.approx(p, abs=5 * deviation)


def test_elements_are_independent_of_their_place():
    """Four elements share a 64-bit integer: each of the places drops as often, and independently."""
    dropped = (dropout_mask(torch.empty(200_003 * 4), 0.3) == 0).view(-1, 4).double()
    assert dropped.mean(dim=0).tolist() == pytest.approx([0.3] * 4, abs=0.006)
    correlation = torch.corrcoef(dropped.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.012


def test_the_generator_decides_and_nothing_happens_in_evaluation_or_at_zero():
    x = torch.ones(13, 7)
    torch.manual_seed(5)
    first = dropout(x, 0.5, training=True)
    assert not torch.equal(first, dropout(x, 0.5, training=True))
    torch.manual_seed(5)
    assert torch.equal(first, dropout(x, 0.5, training=True))
    assert dropout(x, 0.5, training=False) is dropout(x, 0.0, training=True) is x
