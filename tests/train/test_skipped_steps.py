"""Losses and gradients that are no numbers: skipped without a trace in weights and optimizer, counted, and an end made
of too many.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sqat.checkpoint import load_model
from sqat.data.tokenizer import Tokenizer
from sqat.errors import ConfigError, StorageError, TrainingError
from sqat.run_config import RunConfig
from sqat.train import Callback, Trainer, start_run
from sqat.train.checkpoints import SKIPPED_KEPT, latest_checkpoint
from sqat.train.optim import cosine_with_warmup
from sqat.train.step import not_finite, step_unless

KINDS = ["loss", "gradient", "both"]
TIMES = ("tokens_per_second", "data_wait")


class Spoiled(nn.Module):
    """A task whose loss is infinite in some steps: what is shown of it ("loss"), its gradient, or both."""

    def __init__(self, trainer: Trainer, steps: set[int], kind: str) -> None:
        super().__init__()
        self.task, self.trainer, self.steps, self.kind = trainer.task, trainer, steps, kind

    def forward(self, *arguments: Any) -> Any:
        loss, sums = self.task(*arguments)
        if self.trainer.state.step + 1 in self.steps:
            if self.kind != "gradient":
                sums = {**sums, "loss": sums["loss"] + math.inf}
            if self.kind != "loss":
                loss = loss * math.nan
        return loss, sums


def spoil(trainer: Trainer, steps: set[int], kind: str = "both") -> Trainer:
    trainer.task = Spoiled(trainer, steps, kind)
    return trainer


class Copies(Callback):
    """What weights and optimizer are after each step."""

    def __init__(self) -> None:
        self.after: dict[int, list[Tensor]] = {}
        self.rates: list[float] = []

    def on_step(self, trainer: Trainer) -> None:
        state = trainer.optimizer.state_dict()["state"]
        tensors = [*trainer.model.state_dict().values(), *(t for values in state.values() for t in values.values())]
        self.after[trainer.state.step] = [tensor.clone() for tensor in tensors]
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])

    def same(self, step: int, other: int) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.after[step], self.after[other], strict=True))


def lines(run: Path) -> list[dict[str, Any]]:
    records = [
        json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


@pytest.fixture
def start(run_config: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., Trainer]:
    def begin(
        folder: str = "run", *, callbacks: tuple[Callback, ...] = (), resume: bool = False, **train: Any
    ) -> Trainer:
        return start_run(run_config(**train), tmp_path / folder, callbacks=callbacks, resume=resume)

    return begin


class TestSkipping:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("accumulation", "shards"), [(1, 1), (3, 1), (2, 2)])
    def test_weights_and_optimizer_stay_and_the_schedule_goes_on(
        self, start, monkeypatch, kind, accumulation, shards
    ) -> None:
        monkeypatch.setattr("sqat.train.trainer.suitable_shards", lambda model: shards)
        monkeypatch.setattr("sqat.cpu.shards.SHARD_TOKENS", 1)
        copies = Copies()
        trainer = spoil(start(callbacks=(copies,), gradient_accumulation=accumulation), {3, 4, 6}, kind)
        trainer.train()
        same = [step for step in range(2, 8) if copies.same(step, step - 1)]
        assert same == [3, 4, 6]
        assert (trainer.state.step, trainer.state.skipped_steps, trainer.state.skipped_in_a_row) == (7, 3, 0)
        assert copies.rates == [cosine_with_warmup(step, peak=2e-3, total_steps=7) for step in range(7)]

    def test_the_first_step(self, start) -> None:
        copies = Copies()
        trainer = spoil(start(callbacks=(copies,)), {1})
        before = [tensor.clone() for tensor in trainer.model.state_dict().values()]
        trainer.train()
        assert all(torch.equal(*pair) for pair in zip(copies.after[1], before, strict=True))  # no optimizer state yet
        assert not all(torch.equal(*pair) for pair in zip(copies.after[2], before, strict=False))

    def test_the_log_counts_them_and_means_leave_them_out(self, start, tmp_path) -> None:
        clean = start("clean", log_every=1)
        clean.train()
        spoil(start("run", log_every=1), {3}).train()
        spoil(start("seldom", log_every=3), {3}).train()
        train = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
        assert [line["skipped_steps"] for line in train] == [0, 0, 1, 1, 1, 1, 1]
        assert train[2]["loss"] is train[2]["accuracy"] is train[2]["grad_norm"] is None
        assert train[:2] == lines(tmp_path / "clean")[:2]
        assert [line["tokens"] for line in train] == [
            line["tokens"] for line in lines(tmp_path / "clean") if line["kind"] == "train"
        ]
        seldom = lines(tmp_path / "seldom")[0]
        assert (seldom["step"], seldom["skipped_steps"]) == (3, 1)
        assert seldom["grad_norm"] == pytest.approx((train[0]["grad_norm"] + train[1]["grad_norm"]) / 2)
        assert min(train[0]["loss"], train[1]["loss"]) < seldom["loss"] < max(train[0]["loss"], train[1]["loss"])

    @pytest.mark.parametrize("stop", [3, 4, 5])
    def test_a_resumed_run_is_the_uninterrupted_one(self, start, tmp_path, stop) -> None:
        class Stop(Callback):
            def on_step(self, trainer: Trainer) -> None:
                if trainer.state.step == stop:
                    trainer.interrupt("a test")

        whole = spoil(start("whole"), {3, 4})
        whole.train()
        spoil(start("parts", callbacks=(Stop(),)), {3, 4}).train()
        resumed = spoil(start("parts", resume=True), {3, 4})
        assert (resumed.state.skipped_steps, resumed.state.skipped_in_a_row) == {3: (1, 1), 4: (2, 2), 5: (2, 0)}[stop]
        resumed.train()
        assert resumed.state == whole.state
        assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
        weights = [trainer.model.state_dict() for trainer in (whole, resumed)]
        torch.testing.assert_close(*weights, rtol=0, atol=0)

    def test_what_is_read_later_is_the_same(self, start, tmp_path, monkeypatch) -> None:
        """As on a GPU, where nothing is read until the log line, the checkpoint or the end."""
        at_once = spoil(start("at once", log_every=3), {2, 3, 5})
        at_once.train()
        monkeypatch.setattr("sqat.train.trainer.waits", lambda skipped: True)
        later = spoil(start("later", log_every=3), {2, 3, 5})
        later.train()
        assert later.state == at_once.state
        assert lines(tmp_path / "later") == lines(tmp_path / "at once")


class TestTheEnd:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("later", [False, True])
    def test_too_many_in_a_row(self, start, tmp_path, monkeypatch, caplog, kind, later) -> None:
        monkeypatch.setattr("sqat.train.trainer.waits", lambda skipped: later)
        trainer = spoil(start(max_skipped_steps=3, checkpoint_every=2, log_every=7), {1, 3, 4, 5, 6}, kind)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(
                TrainingError, match=r"the last 3 steps, up to step 5, had no finite loss or gradient"
            ) as error,
        ):
            trainer.train()
        assert "folder skipped" in str(error.value)
        assert "train.max_skipped_steps (3)" in str(error.value)
        skipped = [int(n) for n in re.findall(r"step (\d+) is skipped: loss", caplog.text)]
        assert skipped == ([1, 3, 4, 5, 6] if later else [1, 3, 4, 5])  # a GPU has run on to the checkpoint
        kept = latest_checkpoint(tmp_path / "run")
        assert kept.name == f"step-0000000{skipped[-1]}"
        assert f"{kept} is saved, and --resume goes on from it" in str(error.value)
        assert all(tensor.isfinite().all() for tensor in load_model(kept).parameters())

    @pytest.mark.parametrize(("later", "log_every", "end"), [(False, 1, 5), (False, 3, 5), (True, 3, 6)])
    def test_what_is_saved_then_goes_on_to_the_same_bits(
        self, start, tmp_path, monkeypatch, later, log_every, end
    ) -> None:
        monkeypatch.setattr("sqat.train.trainer.waits", lambda skipped: later)
        settings = {"checkpoint_every": None, "log_every": log_every, "evaluate_every": end}
        whole = spoil(start("whole", max_skipped_steps=4, **settings), {3, 4, 5})
        whole.train()
        with pytest.raises(TrainingError, match=r"the last 3 steps, up to step 5, .* and were skipped"):
            spoil(start("parts", max_skipped_steps=3, **settings), {3, 4, 5}).train()
        resumed = spoil(start("parts", max_skipped_steps=3, resume=True, **settings), {3, 4, 5})
        assert resumed.state.step == end
        resumed.train()
        assert resumed.state == whole.state
        assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
        weights = [trainer.model.state_dict() for trainer in (whole, resumed)]
        torch.testing.assert_close(*weights, rtol=0, atol=0)

    def test_no_checkpoint_where_the_disk_takes_none(self, start, tmp_path, monkeypatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr("sqat.train.trainer.write_checkpoint", fail)
        with pytest.raises(TrainingError, match=r"up to step 3, .* the run ends\. the disk is full\. Earlier"):
            spoil(start(max_skipped_steps=2), {2, 3}).train()

    def test_more_may_be_borne_when_a_run_is_resumed(self, start, tmp_path) -> None:
        with pytest.raises(TrainingError, match="up to step 3"):
            spoil(start(max_skipped_steps=2, checkpoint_every=1), {2, 3, 4}).train()
        trainer = spoil(start(max_skipped_steps=5, checkpoint_every=1, resume=True), {2, 3, 4})
        assert (trainer.state.step, trainer.state.skipped_in_a_row) == (3, 2)
        trainer.train()
        assert (trainer.state.step, trainer.state.skipped_steps) == (7, 3)

    def test_the_number_has_to_be_one(self, run_config) -> None:
        with pytest.raises(ConfigError, match=r"max_skipped_steps is 0, but must be"):
            run_config(max_skipped_steps=0)

    def test_a_validation_loss_that_is_no_number_is_no_best_one(self, start, monkeypatch) -> None:
        trainer = start(max_steps=2)
        first = trainer.evaluate()
        monkeypatch.setattr(trainer, "measure", lambda tokens: replace(first, loss=math.nan))
        trainer.evaluate()
        assert trainer.state.best_loss == first.loss
        assert math.isnan(trainer.state.evaluation["loss"])


class TestTheBatch:
    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("mode", ["packed", "rows"])
    def test_it_is_the_one_that_was_skipped(self, run_config, tmp_path, accumulation, mode) -> None:
        seen = []

        class Watched(Spoiled):
            def forward(self, batch: Any, *arguments: Any) -> Any:
                if self.trainer.state.step + 1 in self.steps:
                    seen.append((batch, self.trainer.state.data))
                return super().forward(batch, *arguments)

        config = run_config(gradient_accumulation=accumulation, data={"mode": mode, "limit": 5}, max_steps=19)
        trainer = start_run(config, tmp_path / "run")
        trainer.task = Watched(trainer, {18}, "both")
        trainer.train()
        assert trainer.state.data.epoch > 0
        folder = tmp_path / "run" / "skipped" / "step-00000018-rank-0"
        found, about = load_file(folder / "batch.safetensors"), json.loads((folder / "batch.json").read_text())
        batches, (before, *_) = [list(parts) for parts in zip(*seen, strict=True)]
        assert 1 <= len(batches) <= accumulation
        expected = {
            f"{i}.{name}": getattr(batch, name)
            for i, batch in enumerate(batches)
            for name in ("inputs", "targets", "positions", "documents")
            if getattr(batch, name) is not None
        }
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        tokenizer = Tokenizer.load(latest_checkpoint(tmp_path / "run"))
        assert about["text"] == [[tokenizer.decode(row) for row in batch.inputs.tolist()] for batch in batches]
        del about["text"]
        found_bad = {"loss": "inf", "gradient_norm": "nan"}
        assert about == {"step": 18, "rank": 0, **before.to_dict(), **found_bad}

    def test_the_newest_are_kept(self, start, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr("sqat.train.checkpoints.SKIPPED_KEPT", 2)
        assert SKIPPED_KEPT >= 10
        spoil(start(), {1, 3, 4, 6}).train()
        names = sorted(path.name for path in (tmp_path / "run" / "skipped").iterdir())
        assert names == ["step-00000004-rank-0", "step-00000006-rank-0"]

    def test_a_full_disk_does_not_end_the_run(self, start, tmp_path, monkeypatch, caplog) -> None:
        def fail(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr("sqat.train.checkpoints.save_file", fail)
        with caplog.at_level(logging.WARNING):
            spoil(start(), {3}).train()
        assert "the batch of step 3 cannot be saved: " in caplog.text
        assert "no space left on device" in caplog.text
        assert list((tmp_path / "run" / "skipped").iterdir()) == []

    def test_without_a_folder_nothing_is_written(self, start, tmp_path, monkeypatch) -> None:
        trainer = spoil(start(), {3})
        trainer.out = None
        trainer.train()
        assert not (tmp_path / "run" / "skipped").exists()
        assert trainer.state.skipped_steps == 1


class TestStepUnless:
    """By a tensor that the optimizer reads, as on a GPU, and by asking: the same to the bit."""

    def run(self, by_tensor: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
        monkeypatch.setattr("sqat.train.step.waits", lambda skipped: by_tensor)
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
        return [*weights, *(t for state in optimizer.state.values() for t in state.values())]

    def test_twins(self, monkeypatch) -> None:
        by_tensor, asked = self.run(True, monkeypatch), self.run(False, monkeypatch)
        torch.testing.assert_close(by_tensor, asked, rtol=0, atol=0)
        assert all(tensor.isfinite().all() for tensor in asked)
        assert asked[2] == 6  # the optimizer's own count of steps

    def test_optimizers_that_know_no_such_tensor(self, monkeypatch) -> None:
        monkeypatch.setattr("sqat.train.step.waits", lambda skipped: True)
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.full((3,), math.nan)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        step_unless(torch.tensor(1.0), optimizer)
        assert weight.tolist() == [1.0] * 3
        weight.grad = torch.ones(3)
        step_unless(torch.tensor(0.0), optimizer)
        assert weight.tolist() == [0.0] * 3


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite(bad) -> None:
    good = torch.tensor(3.0)
    assert [float(not_finite(*pair)) for pair in [(good, good), (good, good * bad), (good * bad, good)]] == [0, 1, 1]
    assert not_finite(good, good * bad).dtype == torch.float32


def _verdict(rank: int, store: Path, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    one = torch.tensor(1.0)
    verdicts = [not_finite(one, one), not_finite(one / 0 if rank else one, one), not_finite(one, one)]
    results.put((rank, [float(verdict) for verdict in verdicts]))
    torch.distributed.destroy_process_group()


def test_processes_agree(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_verdict, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == {0: [0.0, 1.0, 0.0], 1: [0.0, 1.0, 0.0]}
