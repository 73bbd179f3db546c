"""The card's learning-rate schedule."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from rxnn.training.scheduler import get_transformer_lr_scheduler
from sqat.errors import ConfigError


def rates(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    scheduler = make(optimizer)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


class TestSchedule:
    def test_is_cosine_annealing_and_stays_at_zero_where_that_climbs_again(self):
        ours = rates(lambda optimizer: get_transformer_lr_scheduler(optimizer, num_training_steps=13), 20)
        torchs = rates(lambda optimizer: CosineAnnealingLR(optimizer, T_max=13), 20)
        assert ours == pytest.approx([*torchs[:13], *[0.0] * 7], abs=1e-12)
        assert torchs[-1] > 0

    def test_warm_up(self):
        result = rates(lambda optimizer: get_transformer_lr_scheduler(optimizer, 13, warmup_steps=4), 14)
        assert result[:4] == pytest.approx([0.5e-3, 1e-3, 1.5e-3, 2e-3])
        assert result[4] == pytest.approx(2e-3)
        assert result[4:] == sorted(result[4:], reverse=True)
        assert result[13] == 0

    @pytest.mark.parametrize(
        ("steps", "warmup", "named"), [(0, 0, "num_training_steps"), (5, 5, "warmup_steps"), (5, -1, "warmup_steps")]
    )
    def test_unusable(self, steps, warmup, named):
        with pytest.raises(ConfigError, match=f"{named} is "):
            rates(lambda optimizer: get_transformer_lr_scheduler(optimizer, steps, warmup), 1)
