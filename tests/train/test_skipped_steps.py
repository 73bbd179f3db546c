"""A step whose loss or gradient is NaN or Inf is skipped without a trace in weights and optimizer, and counted; too
many in a row end the run.
"""

import math
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from sqat.checkpoint import load_model
from sqat.errors import StorageError, TrainingError
from sqat.train import Callback
from sqat.train.checkpoints import list_checkpoints
from sqat.train.optim import cosine_with_warmup
from sqat.train.step import not_finite, step_unless


class Spoiled(nn.Module):
    """A task whose loss is infinite in some steps: what is shown of it ("loss"), its gradient, or both."""

    def __init__(self, trainer, steps, kind="both"):
        super().__init__()
        self.task, self.trainer, self.steps, self.kind = trainer.task, trainer, steps, kind
        self.seen = []  # batches of these steps, and where their data began

    def forward(self, batch, *arguments):
        loss, sums = self.task(batch, *arguments)
        if self.trainer.state.step + 1 in self.steps:
            self.seen.append((batch, self.trainer.state.data))
            if self.kind != "gradient":
                sums = {**sums, "loss": sums["loss"] + math.inf}
            if self.kind != "loss":
                loss = loss * math.nan
        return loss, sums


@pytest.fixture
def spoiled(start):
    """`spoiled({3, 4}, "loss", "folder", …)`: a trainer whose steps 3 and 4 are spoiled."""

    def begin(steps, kind="both", folder="run", **options):
        trainer = start(folder, **options)
        trainer.task = Spoiled(trainer, steps, kind)
        return trainer

    return begin


class Copies(Callback):
    """What weights and optimizer are before the first step and after each."""

    def __init__(self):
        self.after, self.rates = {}, []

    def on_start(self, trainer):
        state = trainer.optimizer.state_dict()["state"]
        tensors = [*trainer.model.state_dict().values(), *(t for values in state.values() for t in values.values())]
        self.after[trainer.state.step] = [tensor.clone() for tensor in tensors]

    def on_step(self, trainer):
        self.on_start(trainer)
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])

    def skipped(self):
        """Steps that changed nothing."""
        pairs = {step: zip(self.after[step], self.after[step - 1], strict=True) for step in self.after if step > 0}
        sizes = {step: len(self.after[step]) == len(self.after[step - 1]) for step in pairs}
        return [step for step, pair in pairs.items() if sizes[step] and all(torch.equal(a, b) for a, b in pair)]


def assert_same_end(resumed, whole, log):
    assert resumed.state == whole.state
    assert log("parts") == log("whole")
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


class TestSkipping:
    @pytest.mark.parametrize(
        ("kind", "accumulation", "shards"), [("loss", 1, 1), ("gradient", 3, 1), ("both", 2, 2), ("loss", 2, 2)]
    )
    def test_weights_and_optimizer_stay_the_schedule_goes_on(self, spoiled, monkeypatch, kind, accumulation, shards):
        monkeypatch.setattr("sqat.train.step.suitable_shards", lambda model: shards)
        monkeypatch.setattr("sqat.cpu.shards.SHARD_TOKENS", 1)
        copies = Copies()
        trainer = spoiled({1, 3, 4, 6}, kind, callbacks=[copies], gradient_accumulation=accumulation)
        trainer.train()
        assert copies.skipped() == [1, 3, 4, 6]
        assert (trainer.state.step, trainer.state.skipped_steps, trainer.state.skipped_in_a_row) == (7, 4, 0)
        assert copies.rates == [cosine_with_warmup(step, peak=2e-3, total_steps=7) for step in range(7)]

    def test_the_log_counts_skipped_steps_and_its_means_leave_them_out(self, start, spoiled, log):
        start("clean").train()
        spoiled({3}).train()
        spoiled({3}, folder="seldom", log_every=3).train()
        train, clean = log("run", "train"), log("clean", "train")
        assert [line["skipped_steps"] for line in train] == [0, 0, 1, 1, 1, 1, 1]
        assert train[2]["loss"] is train[2]["accuracy"] is train[2]["grad_norm"] is None
        assert train[:2] == clean[:2]
        assert [line["tokens"] for line in train] == [line["tokens"] for line in clean]
        seldom = log("seldom")[0]
        assert (seldom["step"], seldom["skipped_steps"]) == (3, 1)
        assert seldom["grad_norm"] == pytest.approx((train[0]["grad_norm"] + train[1]["grad_norm"]) / 2)
        assert min(train[0]["loss"], train[1]["loss"]) < seldom["loss"] < max(train[0]["loss"], train[1]["loss"])

    def test_a_resumed_run_is_the_uninterrupted_one(self, spoiled, log, interrupt):
        whole = spoiled({3, 4}, folder="whole")
        whole.train()
        for stop, skipped in {3: (1, 1), 4: (2, 2), 5: (2, 0)}.items():
            spoiled({3, 4}, folder=f"parts {stop}", callbacks=[interrupt(stop)]).train()
            resumed = spoiled({3, 4}, folder=f"parts {stop}", resume=True)
            assert (resumed.state.skipped_steps, resumed.state.skipped_in_a_row) == skipped
            resumed.train()
            assert_same_end(resumed, whole, lambda name, stop=stop: log(name if name == "whole" else f"parts {stop}"))

    def test_reading_later_as_on_a_gpu_changes_nothing(self, spoiled, log, monkeypatch):
        at_once = spoiled({2, 3, 5}, folder="whole", log_every=3)
        at_once.train()
        monkeypatch.setattr("sqat.train.step.waits", lambda skipped: True)
        later = spoiled({2, 3, 5}, folder="parts", log_every=3)
        later.train()
        assert_same_end(later, at_once, log)


class TestTheEnd:
    @pytest.mark.parametrize(("kind", "later"), [("loss", False), ("gradient", True), ("both", True)])
    def test_too_many_in_a_row_end_the_run(self, spoiled, tmp_path, monkeypatch, caplog, kind, later):
        monkeypatch.setattr("sqat.train.step.waits", lambda skipped: later)
        trainer = spoiled({1, 3, 4, 5, 6}, kind, max_skipped_steps=3, checkpoint_every=2, log_every=7)
        with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 5, were skipped") as error:
            trainer.train()
        message = str(error.value)
        skipped = [int(n) for n in re.findall(r"step (\d+) is skipped: loss", caplog.text)]
        assert skipped == ([1, 3, 4, 5, 6] if later else [1, 3, 4, 5])  # a GPU has run on to the checkpoint
        kept = list_checkpoints(tmp_path / "run")[-1]
        assert kept.name == f"step-0000000{skipped[-1]}"
        saved = f"{kept} is saved, and --resume goes on from it"
        assert all(text in message for text in ("epoch ", "train.max_skipped_steps (3)", saved))
        assert all(tensor.isfinite().all() for tensor in load_model(kept).parameters())

    def test_the_saved_run_resumes_to_the_same_bits(self, spoiled, log):
        settings = {"checkpoint_every": None, "evaluate_every": 5}
        whole = spoiled({3, 4, 5}, folder="whole", max_skipped_steps=4, **settings)
        whole.train()
        with pytest.raises(TrainingError, match=r"3 steps in a row, up to step 5, were skipped"):
            spoiled({3, 4, 5}, folder="parts", max_skipped_steps=3, **settings).train()
        resumed = spoiled({3, 4, 5}, folder="parts", max_skipped_steps=3, resume=True, **settings)
        assert resumed.state.step == 5
        resumed.train()
        assert_same_end(resumed, whole, log)

    def test_a_full_disk_keeps_the_reason(self, spoiled, monkeypatch, caplog):
        full = Mock(side_effect=StorageError("the disk is full"))
        monkeypatch.setattr("sqat.train.checkpoints.write_checkpoint", full)
        with pytest.raises(StorageError, match=r"the disk is full\. Earlier"):
            spoiled({2, 3}, max_skipped_steps=2).train()
        assert "stopping at step 3 of 7: too many skipped steps in a row" in caplog.text

    def test_a_resumed_run_may_skip_more(self, spoiled):
        with pytest.raises(TrainingError, match="up to step 3"):
            spoiled({2, 3, 4}, max_skipped_steps=2, checkpoint_every=1).train()
        trainer = spoiled({2, 3, 4}, max_skipped_steps=5, checkpoint_every=1, resume=True)
        assert (trainer.state.step, trainer.state.skipped_in_a_row) == (3, 2)
        trainer.train()
        assert (trainer.state.step, trainer.state.skipped_steps) == (7, 3)

    def test_a_nan_validation_loss_is_never_the_best(self, start, monkeypatch):
        trainer = start(max_steps=2)
        first = trainer.evaluate()
        monkeypatch.setattr(trainer, "measure", lambda tokens: replace(first, loss=math.nan))
        trainer.evaluate()
        assert trainer.state.best_loss == first.loss
        assert math.isnan(trainer.state.evaluation["loss"])


@pytest.mark.parametrize("mode", ["packed", "rows"])
def test_the_skipped_batch_can_be_made_again(spoiled, caplog, mode):
    trainer = spoiled({18}, data={"mode": mode, "limit": 5}, max_steps=19)
    trainer.train()
    ((batch, before),) = trainer.task.seen
    assert before.epoch > 0
    place = f"its data begin at epoch {before.epoch}, row {before.row}"
    assert f"step 18 is skipped: loss inf, gradient norm nan; {place}" in caplog.text
    torch.testing.assert_close(trainer.batches.batch(*before).inputs, batch.inputs, rtol=0, atol=0)


class TestStepUnless:
    def test_the_fused_optimizer_skips_by_a_tensor_as_by_asking(self, monkeypatch):
        found = []
        for by_tensor in (True, False):
            monkeypatch.setattr("sqat.train.step.waits", lambda skipped, by_tensor=by_tensor: by_tensor)
            torch.manual_seed(3)
            weights = [nn.Parameter(torch.randn(shape)) for shape in [(7, 5), (11,)]]
            optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.3, fused=True)
            for step in range(9):
                for weight in weights:
                    weight.grad = torch.randn_like(weight)
                if step in (2, 3, 7):
                    weights[0].grad[3, 2] = math.inf
                norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
                step_unless(not_finite(torch.tensor(1.0), norm), optimizer)
                assert not hasattr(optimizer, "found_inf")
            found.append([*weights, *(t for state in optimizer.state.values() for t in state.values())])
        torch.testing.assert_close(*found, rtol=0, atol=0)
        assert all(tensor.isfinite().all() for tensor in found[0])
        assert found[0][2] == 6  # the optimizer's own count of steps

    def test_other_optimizers_are_asked(self, monkeypatch):
        monkeypatch.setattr("sqat.train.step.waits", lambda skipped: True)
        weight = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        for skipped, grad, expected in [(1.0, math.nan, 1.0), (0.0, 1.0, 0.0)]:
            weight.grad = torch.full((3,), grad)
            step_unless(torch.tensor(skipped), optimizer)
            assert weight.tolist() == [expected] * 3


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_inf_and_nan_are_not_finite(bad):
    good = torch.tensor(3.0)
    assert [float(not_finite(*pair)) for pair in [(good, good), (good, good * bad), (good * bad, good)]] == [0, 1, 1]
    assert not_finite(good, good * bad).dtype == torch.float32


def _verdict(rank, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    one = torch.tensor(1.0)
    verdicts = [not_finite(one, one), not_finite(one / 0 if rank else one, one), not_finite(one, one)]
    torch.distributed.destroy_process_group()
    return [float(verdict) for verdict in verdicts]


def test_ranks_agree(tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(_verdict, range(2), [tmp_path / "store"] * 2))
    assert found == [[0.0, 1.0, 0.0]] * 2
