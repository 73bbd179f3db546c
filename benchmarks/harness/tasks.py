"""What runs inside child processes: `sqat train`, the card's snippet on two libraries, and single training steps.

The first two count the same thing: real targets (the next token of a story, never padding) per second of the training
loop, the wait for data included; start, tokenizer training, validation and saving are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.harness.peers import batched_bytes, qwen3
from benchmarks.harness.results import NotMeasured
from benchmarks.harness.settings import load_batch
from torch import nn

from sqat import Decoder, ModelConfig, RunConfig, start_run
from sqat.bench import memory_bytes, peak_memory_bytes, synchronize, training_step
from sqat.data.batches import Batch
from sqat.train import Callback
from sqat.train.step import autocast

# The card's import paths on each library; rxlm renamed some.
PATHS = {
    "rxlm": {"trainer": "rxlm.llm_training.supervised", "dataset": "rxlm.llm_training.dataset"},
    "rxnn": {"trainer": "rxnn.training.bml", "dataset": "rxnn.training.dataset"},
}
NAIVE_ROWS = 4  # of a batch at a time: the naive twin keeps every expert on every token for backward
MEMORY_SHARE = 0.5  # of the memory available: a candidate that needs more is not measured


class Measured(Exception):
    """Leaves a library's training loop once enough steps were seen."""


class Clock:
    """Seconds and targets from the end of step `warmup` to the end of step `steps`."""

    def __init__(self, warmup: int, steps: int, device: str) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.step = self.targets = 0
        self.began = self.seconds = 0.0

    def tick(self, targets: Any) -> bool:
        """Count one more step with so many targets (a number or a tensor). Returns whether it was the last."""
        self.step += 1
        if self.step > self.warmup:
            self.targets = self.targets + targets
        if self.step in (self.warmup, self.steps):
            synchronize(self.device)
            now = time.perf_counter()
            self.began, self.seconds = (now, 0.0) if self.step == self.warmup else (self.began, now - self.began)
        return self.step == self.steps

    def result(self, **more: Any) -> dict[str, Any]:
        peak = peak_memory_bytes(self.device)
        return {"seconds": self.seconds, "tokens": int(self.targets), "peak_bytes": peak, **more}


def sqat_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`sqat train` with the given configuration; `settings`: run, out, warmup, steps, device."""

    class Watch(Callback):
        def __init__(self) -> None:
            self.tokens = 0
            self.waits: list[float] = []

        def on_step(self, trainer: Any) -> None:
            last = clock.tick(trainer.state.tokens - self.tokens)
            self.tokens = trainer.state.tokens
            if last:
                trainer.interrupt("measured")

        def on_log(self, trainer: Any, metrics: dict[str, Any]) -> None:
            if trainer.state.step > clock.warmup:
                self.waits.append(metrics["data_wait"])

    clock, watch = Clock(settings["warmup"], settings["steps"], settings["device"]), Watch()
    start_run(RunConfig.from_dict(settings["run"]), settings["out"], callbacks=[watch]).train()
    return clock.result(data_wait=sum(watch.waits) / max(len(watch.waits), 1))


def card_snippet(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The card's training snippet; `settings`: library, arguments (of its model), tokenizer, texts, batch_size,
    seq_len, log_dir, warmup, steps, device.
    """
    names = _imported(settings["library"])
    device = torch.device(settings["device"])
    torch.manual_seed(0)
    model = names["ExperimentalAttentionTransformer"](**settings["arguments"])
    tokenizer = names["load_tokenizer_from_file"](settings["tokenizer"])
    dataset, waited = _dataset(names["AutoregressiveLMDataset"], settings, tokenizer)
    clock = Clock(settings["warmup"], settings["steps"], device.type)
    callback: Any = names["TrainerCallback"]

    class Watch(callback):
        def on_batch_end(self, model: Any, batch_idx: int, loss: Any, batch: Any) -> None:
            mask = batch["attention_mask"]
            if clock.tick(mask.sum() - len(mask)):  # the first token of a row is not a target
                raise Measured
            if clock.step == clock.warmup:
                waited.clear()

    counter = names["TokenCounterCallback"](limit=10**15)
    callbacks = [names["PrintLossCallback"](), names["PrintAccuracyCallback"](), counter, Watch()]
    trainer = names["AutoregressiveTrainer"](
        model,
        device,
        dataset=dataset,
        vocab_size=settings["arguments"]["vocab_size"],
        callbacks=callbacks,
        use_amp=True,
        dtype=torch.bfloat16,
        log_dir=settings["log_dir"],
        use_moe_aux_loss=settings["arguments"]["use_moe_ff"],
        moe_aux_loss_scale=0.01,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    scheduler = names["get_transformer_lr_scheduler"](optimizer, num_training_steps=10_000, warmup_steps=0)
    try:
        trainer(epochs=1, batch_size=settings["batch_size"], optimizer=optimizer, scheduler=scheduler)
    except Measured:
        return clock.result(data_wait=sum(waited) / clock.seconds)
    raise RuntimeError(f"the data gave {clock.step} batches, but {clock.steps} are needed")


def _imported(library: str) -> dict[str, Any]:
    """The snippet's imports by name."""
    callbacks = ("PrintLossCallback", "PrintAccuracyCallback", "TokenCounterCallback", "TrainerCallback")
    wanted = {
        f"{library}.experimental.models": ("ExperimentalAttentionTransformer",),
        f"{library}.training.tokenizer": ("load_tokenizer_from_file",),
        PATHS[library]["dataset"]: ("AutoregressiveLMDataset",),
        PATHS[library]["trainer"]: ("AutoregressiveTrainer",),
        f"{library}.training.callbacks": callbacks,
        f"{library}.training.scheduler": ("get_transformer_lr_scheduler",),
    }
    return {
        name: getattr(importlib.import_module(module), name) for module, members in wanted.items() for name in members
    }


def _dataset(kind: Any, settings: Mapping[str, Any], tokenizer: Any) -> tuple[Any, list[float]]:
    """The library's data set over the texts, and a list that grows by the seconds each row took."""
    texts: Any = [json.loads(line)["text"] for line in Path(settings["texts"]).read_text("utf-8").splitlines()]
    if importlib.util.find_spec("datasets"):
        from datasets import Dataset

        texts = Dataset.from_dict({"text": texts})  # what `from_hf_hub` passes on
    seconds: list[float] = []

    class Timed(kind):
        def __getitem__(self, index: int) -> Any:
            start = time.perf_counter()
            row = super().__getitem__(index)
            seconds.append(time.perf_counter() - start)
            return row

    return Timed(texts, tokenizer=tokenizer, max_seq_len=settings["seq_len"]), seconds


def make_step(kind: str, config: ModelConfig, batch: Batch, device: str) -> Callable[[], Any]:
    """A function that runs one training step: forward, backward, clipping at norm 1, AdamW.

    Args:
        kind: "sqat", "sqat float32", "sqat compiled", "naive", or "qwen3 EXPERTS" for transformers with that backend.
        batch: on the device; for "naive" and "qwen3" without document boundaries.

    Raises:
        NotMeasured: the candidate would take too much memory.
    """
    name, _, option = kind.partition(" ")
    if name == "sqat":
        precision = "float32" if option == "float32" else "auto"
        return training_step(config, batch, device, precision=precision, compiled=option == "compiled")
    torch.manual_seed(0)
    if name == "naive":
        from benchmarks.harness.naive import loss_naive

        model: Any = Decoder(config).to(device)
        rows = len(batch.inputs)

        def backward() -> None:
            for start in range(0, rows, NAIVE_ROWS):
                few = slice(start, start + NAIVE_ROWS)
                part = Batch(batch.inputs[few], batch.targets[few], None, None)
                (loss_naive(model, part) * len(part.inputs) / rows).backward()
    else:
        if option == "batched_mm":
            _require_memory(batched_bytes(config, batch.inputs.numel()), device)
        model = qwen3(config, option).to(device).train()
        labels = torch.where(batch.targets.roll(1, dims=1) == -100, -100, batch.inputs)

        def backward() -> None:  # transformers' own loss, which by default has no router loss
            with autocast("auto", device):
                loss = model(input_ids=batch.inputs, labels=labels, use_cache=False).loss
            loss.backward()

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)

    def step() -> None:
        backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _require_memory(wanted: int, device: str) -> None:
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else memory_bytes("MemAvailable")
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
    """Seconds per step and peak memory in bytes; see :class:`TimedStep` for `settings`."""
    timed = TimedStep(settings)
    seconds, peak = timed.seconds(), peak_memory_bytes(settings["device"])
    return {"seconds": seconds, "first_seconds": timed.first_seconds, "peak_bytes": peak}
