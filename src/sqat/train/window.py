"""Metrics of the steps since the last log line, kept on the device until they are read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from sqat.train.step import StepSums

_KEPT = ("loss", "correct", "targets", "router_loss", "grad_norm", "skipped")


class MetricsWindow:
    """Collects step sums; :meth:`read` gives their means, and the rate and share of time spent waiting for data."""

    def __init__(self) -> None:
        self.steps: list[StepSums] = []
        self.seconds = 0.0
        self.data_seconds = 0.0
        self.mark = time.perf_counter()

    def restart(self) -> None:
        """Start the clock: what went before (evaluation, writing) is not training time."""
        self.mark = time.perf_counter()

    def waited(self) -> None:
        """Called when a step's data are there."""
        self.data_seconds += time.perf_counter() - self.mark

    def add(self, sums: StepSums) -> None:
        self.steps.append(sums)
        now = time.perf_counter()
        self.seconds += now - self.mark
        self.mark = now

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep, so that a run that goes on from it writes the next line as if it had not
        stopped: (steps,) each, and `clock`, the two times.
        """
        if not self.steps:
            return {}
        sums = {name: torch.stack([getattr(step, name) for step in self.steps]) for name in _KEPT}
        return {**sums, "clock": torch.tensor([self.seconds, self.data_seconds], dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on after what :meth:`tensors` gave; its router statistics are not needed, since only the last step's are
        read. Nothing where there is nothing.
        """
        if "clock" in tensors:
            columns = [tensors[name].to(device).unbind() for name in _KEPT]
            kept = [dict(zip(_KEPT, values, strict=True)) for values in zip(*columns, strict=True)]
            self.steps = [StepSums(router=(), **values) for values in kept]
            self.seconds, self.data_seconds = tensors["clock"].tolist()

    def read(self) -> dict[str, float]:
        """The means since the last call, of steps that were not skipped (NaN where all were); empties the window."""
        skipped = torch.stack([s.skipped for s in self.steps]).tolist()
        steps = [s for s, was_skipped in zip(self.steps, skipped, strict=True) if not was_skipped]
        metrics = dict.fromkeys(("loss", "accuracy", "grad_norm"), math.nan)
        if steps:
            targets = torch.stack([s.targets for s in steps]).sum().item()
            metrics = {
                "loss": torch.stack([s.loss for s in steps]).sum().item() / max(targets, 1),
                "accuracy": torch.stack([s.correct for s in steps]).sum().item() / max(targets, 1),
                "grad_norm": torch.stack([s.grad_norm for s in steps]).mean().item(),
            }
        if steps and (router := steps[-1].router):
            metrics["router_loss"] = torch.stack([s.router_loss for s in steps]).mean().item()
            load = torch.stack([layer.load_E / layer.load_E.sum() for layer in router])
            metrics["router_max_load"] = load.max().item() * load.shape[1]  # 1 when balanced
            metrics["router_entropy"] = torch.stack([layer.entropy / layer.tokens for layer in router]).mean().item()
        self.seconds += time.perf_counter() - self.mark  # reading waited for the device
        seen = torch.stack([s.targets for s in self.steps]).sum().item()
        metrics["tokens_per_second"] = seen / max(self.seconds, 1e-9)
        metrics["data_wait"] = self.data_seconds / max(self.seconds, 1e-9)
        self.steps, self.seconds, self.data_seconds = [], 0.0, 0.0
        self.restart()
        return metrics
