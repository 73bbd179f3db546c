"""The naive twin of the whole model computes what training computes."""

import pytest
import torch
from benchmarks.harness.naive import loss_naive

from sqat.data.batches import IGNORE, Batch
from sqat.train.step import TrainingLoss

ATTENTION = {
    "grouped": {},
    "reverse": {"num_query_heads": 2, "num_kv_heads": 6},
    "window": {"window": 5},
    "window and global tokens": {"window": 3, "global_tokens": 2},
}


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_loss_and_gradients(tiny_model, moe, attention):
    model = tiny_model(moe, **ATTENTION[attention])
    tokens_BT = torch.randint(4, 41, (3, 17))
    targets_BT = tokens_BT.roll(-1, dims=1)
    targets_BT[:, -1] = IGNORE
    batch = Batch(tokens_BT, targets_BT, None, None)

    def gradients(loss):
        return list(torch.autograd.grad(loss, list(model.parameters())))

    fast = TrainingLoss(model)(batch, batch.num_targets, 1.0)[0]
    naive = loss_naive(model, batch)
    torch.testing.assert_close(fast, naive, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(fast), gradients(naive), rtol=1e-4, atol=1e-5)
