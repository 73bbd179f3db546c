"""One training step of each candidate, on the same batch: forward, backward, clip at norm 1, AdamW."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sqat.bench.child import peak_rss_bytes
from sqat.bench.naive import loss_naive
from sqat.bench.peers import batched_bytes, qwen3
from sqat.bench.results import NotMeasured
from sqat.bench.timing import synchronize
from sqat.bench.workload import load_batch
from sqat.config import ModelConfig
from sqat.cpu.shards import suitable_shards
from sqat.data.batches import Batch
from sqat.model import Decoder
from sqat.run_config import TrainConfig
from sqat.train.optim import make_optimizer
from sqat.train.step import TrainingLoss, autocast, train_step

Step = Callable[[], Any]
NAIVE_ROWS = 4  # of a batch at a time: every expert on every token, and all of it kept for backward
MEMORY_SHARE = 0.5  # of what is available, that a candidate may take by its own reckoning


def make_step(kind: str, config: ModelConfig, batch: Batch, device: str) -> Step:
    """A function that runs one training step.

    Args:
        kind: "sqat", "sqat float32", "sqat compiled", "naive", or "qwen3 EXPERTS", transformers' with that backend.
        batch: on the device; for "naive" and "qwen3" its rows are one document each.

    Raises:
        NotMeasured: the candidate would take too much memory.
    """
    torch.manual_seed(0)
    name, _, option = kind.partition(" ")
    if name == "qwen3":
        return _qwen3_step(config, option, batch, device)
    if name == "naive":
        return _naive_step(Decoder(config).to(device), batch)
    precision = "float32" if option == "float32" else "auto"
    return _sqat_step(config, batch, device, precision=precision, compiled=option == "compiled")


def _sqat_step(config: ModelConfig, batch: Batch, device: str, *, precision: str, compiled: bool) -> Step:
    """As :class:`sqat.train.Trainer` runs it."""
    _keep_freed_memory()
    model = Decoder(config).to(device).train()
    shards = 1 if compiled else suitable_shards(model)
    task: nn.Module = TrainingLoss(model, shards=shards)
    optimizer = make_optimizer(model, TrainConfig())
    if compiled:
        task = torch.compile(task)  # type: ignore[assignment]
    targets = batch.num_targets

    def step() -> None:
        with autocast(precision, device):
            train_step(
                task,
                [batch],
                optimizer,
                total_targets=targets,
                clip_norm=1.0,
            )

    return step


def _keep_freed_memory() -> None:
    from sqat.cpu.allocator import keep_freed_memory

    keep_freed_memory()


def _naive_step(model: Decoder, batch: Batch) -> Step:
    """In float32, a few rows at a time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    rows = len(batch.inputs)

    def step() -> None:
        for start in range(0, rows, NAIVE_ROWS):
            few = slice(start, start + NAIVE_ROWS)
            part = Batch(batch.inputs[few], batch.targets[few], None, None)
            (loss_naive(model, part) * len(part.inputs) / rows).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _qwen3_step(config: ModelConfig, experts: str, batch: Batch, device: str) -> Step:
    """transformers' model with its own loss; bf16 autocast, fused AdamW. Without a router loss, its default."""
    if experts == "batched_mm":
        _require_memory(batched_bytes(config, batch.inputs.numel()), device)
    model = qwen3(config, experts).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    labels = torch.where(batch.targets.roll(1, dims=1) == -100, -100, batch.inputs)

    def step() -> None:
        with autocast("auto", device):
            loss = model(input_ids=batch.inputs, labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _require_memory(wanted: int, device: str) -> None:
    from sqat.bench.environment import available_bytes

    free = torch.cuda.mem_get_info()[0] if device == "cuda" else available_bytes()
    if free is not None and wanted > MEMORY_SHARE * free:
        raise NotMeasured(f"it would copy {wanted / 2**30:.0f} GiB of expert weights; {free / 2**30:.0f} GiB are free")


class TimedStep:
    """A candidate's step, built and warmed up; `settings`: kind, model (a configuration), batch (a file), device,
    warmup, steps.

    Raises:
        NotMeasured: see :func:`make_step`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.device, self.steps = settings["device"], settings["steps"]
        batch = load_batch(settings["batch"], self.device)
        self.step = make_step(settings["kind"], ModelConfig.from_dict(settings["model"]), batch, self.device)
        self.first_seconds = self._seconds(settings["warmup"]) * settings["warmup"]

    def seconds(self) -> float:
        """Of one step, on average."""
        return self._seconds(self.steps)

    def _seconds(self, count: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        synchronize(self.device)
        return (time.perf_counter() - start) / count


def timed_steps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds per step and peak memory in bytes, in a child process; see :class:`TimedStep` for `settings`."""
    cuda = settings["device"] == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        timed = TimedStep(settings)
        seconds = timed.seconds()
    except NotMeasured as reason:
        return {"not_measured": str(reason)}
    peak = torch.cuda.max_memory_allocated() if cuda else peak_rss_bytes()
    return {"seconds": seconds, "first_seconds": timed.first_seconds, "peak_bytes": peak}
