"""Out of memory: which batch size to try, and that a run can go on with it."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from sqat.errors import ConfigError, TrainingError
from sqat.train.checkpoints import list_checkpoints
from sqat.train.step import explain_out_of_memory


class Full(nn.Module):
    """A task that fails after some steps as a GPU without memory does."""

    def __init__(self, trainer, after):
        super().__init__()
        self.task, self.trainer, self.after = trainer.task, trainer, after

    def forward(self, *arguments):
        if self.trainer.state.step >= self.after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.task(*arguments)


@pytest.mark.parametrize("training", [False, True])
def test_out_of_memory_suggests_what_to_try(training):
    advice = "step 7 with a batch_size of 64: try a smaller one"
    advice += ", with more gradient_accumulation, .* gradient_checkpointing true, .* --resume" if training else "$"
    with pytest.raises(TrainingError, match=advice), explain_out_of_memory("step 7", 64, training=training):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"), explain_out_of_memory("step 7", 3):
        raise RuntimeError("shapes do not fit")  # other errors pass


def test_a_run_goes_on_as_advised(start, trained, tmp_path):
    """With half the rows at a time, and as many a step: the same data, and nearly the same weights."""
    data = {"limit": 7}  # an epoch ends within the run
    model = {"num_experts": 0, "feedforward_dropout": 0.0}
    settings = {"model": model, "data": data, "max_steps": 17, "checkpoint_every": 3}
    whole = trained("whole", batch_size=6, **settings)
    trainer = start(batch_size=6, **settings)
    trainer.task = Full(trainer, 7)
    message = r"not enough for step 8 with a batch_size of 6: try a smaller one, .* --resume"
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000006"
    with pytest.raises(ConfigError, match=r"train.batch_size · gradient_accumulation is 3, but the run in .* has 6"):
        start(batch_size=3, resume=True, **settings)
    smaller = {"batch_size": 3, "gradient_accumulation": 2, "gradient_checkpointing": True}
    resumed = trained(resume=True, **smaller, **settings)
    assert (resumed.total_steps, resumed.state.data, resumed.state.tokens) == (17, whole.state.data, whole.state.tokens)
    assert whole.state.data.epoch == 1
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=1e-4, atol=1e-5)


def test_validation_out_of_memory_suggests_what_to_try(start, tmp_path, monkeypatch):
    monkeypatch.setattr("sqat.train.trainer.evaluate", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    trainer = start(batch_size=6, checkpoint_every=2, evaluate_every=3)
    message = r"not enough for validation with a batch_size of 6: try a smaller one, with"
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000002"
