"""Metrics of the steps since the last log line, kept on the device until they are read."""

import math
import time

import torch

from sqat.train.step import ROUTER, Sums, router_stats

_NOT_PER_TARGET = ("correct", "targets", "router_loss", "grad_norm", "skipped")


class MetricsWindow:
    """Collects the sums of steps; :meth:`read` gives their means, the training rate, and the share of time spent
    waiting for data.
    """

    def __init__(self) -> None:
        self.steps: list[Sums] = []
        self.seconds = 0.0
        self.data_seconds = 0.0
        self.mark = time.perf_counter()

    def restart_clock(self) -> None:
        """Exclude the time since the last step, which went into evaluating and saving."""
        self.mark = time.perf_counter()

    def waited(self) -> None:
        """To be called when a step's data have arrived."""
        self.data_seconds += time.perf_counter() - self.mark

    def add(self, sums: Sums) -> None:
        """Add a step's sums."""
        self.steps.append(sums)
        now = time.perf_counter()
        self.seconds += now - self.mark
        self.mark = now

    def read(self) -> dict[str, float]:
        """The means since the last call over steps that were not skipped (NaN if all were); empties the window."""
        skipped = torch.stack([step["skipped"] for step in self.steps]).tolist()
        steps = [step for step, was_skipped in zip(self.steps, skipped, strict=True) if not was_skipped]
        metrics = dict.fromkeys(("loss", "accuracy", "grad_norm"), math.nan)
        if steps:
            names = [name for name in steps[0] if not name.startswith(ROUTER)]
            totals = {name: torch.stack([step[name] for step in steps]).sum().item() for name in names}
            targets = max(totals["targets"], 1)
            metrics = {"loss": totals["loss"] / targets, "accuracy": totals["correct"] / targets}
            metrics["grad_norm"] = totals["grad_norm"] / len(steps)
            metrics |= {name: totals[name] / targets for name in names if name not in (*metrics, *_NOT_PER_TARGET)}
            if layers := router_stats(steps[-1]):
                metrics["router_loss"] = totals["router_loss"] / len(steps)
                load = torch.stack([layer.load_E / layer.load_E.sum() for layer in layers])
                metrics["router_max_load"] = load.max().item() * load.shape[1]  # 1 when balanced
                entropy = torch.stack([layer.entropy / layer.tokens for layer in layers])
                metrics["router_entropy"] = entropy.mean().item()
        self.seconds += time.perf_counter() - self.mark  # reading waited for the device
        seen = torch.stack([step["targets"] for step in self.steps]).sum().item()
        metrics["tokens_per_second"] = seen / max(self.seconds, 1e-9)
        metrics["data_wait"] = self.data_seconds / max(self.seconds, 1e-9)
        self.steps, self.seconds, self.data_seconds = [], 0.0, 0.0
        self.restart_clock()
        return metrics
