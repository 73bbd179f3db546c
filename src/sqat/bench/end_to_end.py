"""Training as a user starts it, inside a child process: `sqat train`, and the card's snippet on two libraries.

Both count the same thing: real targets (the next token of a story, padding never) per second of the training loop, the
wait for data included; start, tokenizer training, validation and saving are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sqat.bench.child import peak_rss_bytes

# The card's import paths on each library; `rxlm` renamed some.
PATHS = {
    "rxlm": {"trainer": "rxlm.llm_training.supervised", "dataset": "rxlm.llm_training.dataset"},
    "rxnn": {"trainer": "rxnn.training.bml", "dataset": "rxnn.training.dataset"},
}


class Measured(Exception):
    """Leaves a library's training loop when enough steps were seen."""


class Clock:
    """Seconds and targets from the end of step `warmup` to the end of step `steps`."""

    def __init__(self, warmup: int, steps: int, device: str) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.step = self.targets = 0
        self.began = self.seconds = 0.0

    def tick(self, targets: Any) -> bool:
        """One more step with so many targets (a number, or a tensor); whether it was the last."""
        self.step += 1
        if self.step > self.warmup:
            self.targets = self.targets + targets
        if self.step in (self.warmup, self.steps):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.began, self.seconds = (now, 0.0) if self.step == self.warmup else (self.began, now - self.began)
        return self.step == self.steps

    def result(self, **more: Any) -> dict[str, Any]:
        memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else peak_rss_bytes()
        return {"seconds": self.seconds, "tokens": int(self.targets), "peak_bytes": memory, **more}


def sqat_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`sqat train` with the given configuration; `settings`: run, out, warmup, steps, device."""
    from sqat.run_config import RunConfig
    from sqat.train import Callback, Trainer, start_run

    class Watch(Callback):
        def __init__(self) -> None:
            self.tokens = 0
            self.waits: list[float] = []

        def on_step(self, trainer: Trainer) -> None:
            last = clock.tick(trainer.state.tokens - self.tokens)
            self.tokens = trainer.state.tokens
            if last:
                trainer.interrupt("measured")

        def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
            if trainer.state.step > clock.warmup:
                self.waits.append(metrics["data_wait"])

    clock, watch = Clock(settings["warmup"], settings["steps"], settings["device"]), Watch()
    start_run(RunConfig.from_dict(settings["run"]), settings["out"], callbacks=[watch]).train()
    return clock.result(data_wait=sum(watch.waits) / max(len(watch.waits), 1))


def card_snippet(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The card's training snippet; `settings`: library, arguments (of its model), tokenizer, texts, batch_size,
    seq_len, log_dir, warmup, steps, device.
    """
    library, paths = settings["library"], PATHS[settings["library"]]
    names = _imported(library, paths)
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
            if clock.tick(mask.sum() - len(mask)):  # the first token of a row is nobody's target
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


def _imported(library: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """The snippet's imports by name."""
    wanted = {
        f"{library}.experimental.models": ("ExperimentalAttentionTransformer",),
        f"{library}.training.tokenizer": ("load_tokenizer_from_file",),
        paths["dataset"]: ("AutoregressiveLMDataset",),
        paths["trainer"]: ("AutoregressiveTrainer",),
        f"{library}.training.callbacks": (
            "PrintLossCallback",
            "PrintAccuracyCallback",
            "TokenCounterCallback",
            "TrainerCallback",
        ),
        f"{library}.training.scheduler": ("get_transformer_lr_scheduler",),
    }
    return {
        name: getattr(importlib.import_module(module), name) for module, members in wanted.items() for name in members
    }


def _dataset(kind: Any, settings: Mapping[str, Any], tokenizer: Any) -> tuple[Any, list[float]]:
    """The library's data set over the texts, and the seconds its rows took, as they are asked for."""
    texts: Any = [json.loads(line)["text"] for line in Path(settings["texts"]).read_text("utf-8").splitlines()]
    if importlib.util.find_spec("datasets"):
        from datasets import Dataset

        texts = Dataset.from_dict({"text": texts})  # what `from_hf_hub` hands on
    seconds: list[float] = []

    class Timed(kind):
        def __getitem__(self, index: int) -> Any:
            start = time.perf_counter()
            row = super().__getitem__(index)
            seconds.append(time.perf_counter() - start)
            return row

    return Timed(texts, tokenizer=tokenizer, max_seq_len=settings["seq_len"]), seconds
