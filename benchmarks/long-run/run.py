"""Does a long training run stay as it is? Memory, open files and tokens per second, over an hour with validation and
checkpoints all along.

    python benchmarks/long-run/run.py [--minutes 60] [--data stories:20000] [--out runs/long-run]

Stopped or killed at any moment, the same command goes on until the minutes of all sittings together are over. Samples
go to OUT/samples.jsonl as they are taken; at the end raw/figures.json beside this file says how they rise or fall.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sqat.bench import environment
from sqat.cli.train import read_run
from sqat.durable import replace_file
from sqat.train import Callback, Trainer, start_run

HERE = Path(__file__).parent
SAMPLES = "samples.jsonl"
SETTINGS = ["train.batch_size=8", "train.epochs=null", "train.max_steps=10000000", "train.log_every=20"]
SETTINGS += ["train.evaluate_every=200", "train.checkpoint_every=100", "data.validation_limit=200"]
WARM_UP = 0.1  # of a sitting: its first share, in which caches fill, is no part of the slopes
FIGURES = {"rss_bytes": "bytes of memory", "files": "open files", "threads": "threads", "tokens_per_second": "tokens/s"}


class Sampler(Callback):
    """Writes a line at most every `seconds`, and ends the run when all sittings together took `minutes`."""

    def __init__(self, path: Path, minutes: float, seconds: float) -> None:
        self.path, self.minutes, self.seconds = path, minutes, seconds
        before = read_samples(path)
        replace_file(path, "".join(json.dumps(sample) + "\n" for sample in before))
        self.sitting = before[-1]["sitting"] + 1 if before else 0
        self.earlier = sum(max(s["seconds"] for s in part) for part in by_sitting(before).values()) / 60
        self.start, self.last = time.monotonic(), -float("inf")

    def on_log(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        now = time.monotonic() - self.start
        over = self.earlier + now / 60 >= self.minutes
        if now - self.last >= self.seconds or over:
            self.last = now
            sample = {"sitting": self.sitting, "seconds": now, "step": metrics["step"], **process()}
            sample["tokens_per_second"] = metrics["tokens_per_second"]
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(sample) + "\n")
        if over:
            trainer.stop(f"{self.minutes:g} minutes are over")


def process() -> dict[str, int]:
    """Of this one: resident memory, open files, threads."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = len(os.listdir("/proc/self/fd"))
    return {"rss_bytes": 1024 * int(status["VmRSS"].split()[0]), "files": files, "threads": int(status["Threads"])}


def read_samples(path: Path) -> list[dict[str, Any]]:
    """All but a line that a kill cut short."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            samples.append(json.loads(line))
        except ValueError:
            continue
    return samples


def by_sitting(samples: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    parts: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        parts.setdefault(sample["sitting"], []).append(sample)
    return parts


def figures(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How each figure goes in the longest sitting, after its warm-up: a line through it by least squares."""
    part = max(by_sitting(samples).values(), key=lambda part: part[-1]["seconds"])
    part = [sample for sample in part if sample["seconds"] >= WARM_UP * part[-1]["seconds"]]
    hours = np.array([sample["seconds"] for sample in part]) / 3600
    found: dict[str, Any] = {"samples": len(part), "minutes": (hours[-1] - hours[0]) * 60, "step": part[-1]["step"]}
    for name in FIGURES:
        values = np.array([sample[name] for sample in part], dtype=float)
        slope = float(np.polyfit(hours, values, 1)[0]) if len(part) > 1 and hours[-1] > hours[0] else None
        quarter = max(1, len(part) // 4)
        found[name] = {
            "per_hour": slope,
            "first_quarter": statistics.median(values[:quarter].tolist()),
            "last_quarter": statistics.median(values[-quarter:].tolist()),
            "least": float(values.min()),
            "most": float(values.max()),
        }
    return found


def table(found: dict[str, Any]) -> str:
    lines = [f"{found['minutes']:.0f} minutes, {found['samples']} samples, to step {found['step']:,}", ""]
    lines += ["| | first quarter | last quarter | least | most | an hour |", "|---|---|---|---|---|---|"]
    for name, words in FIGURES.items():
        one = found[name]
        slope = "-" if one["per_hour"] is None else f"{one['per_hour']:+,.1f}"
        values = " | ".join(f"{one[key]:,.0f}" for key in ("first_quarter", "last_quarter", "least", "most"))
        lines.append(f"| {words} | {values} | {slope} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="between samples")
    parser.add_argument("--data", default="stories:20000")
    parser.add_argument("--model", default="sqat-xs")
    parser.add_argument("--out", type=Path, default=Path("runs/long-run"))
    parser.add_argument("--raw", type=Path, default=HERE / "raw", help="where the figures go")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="another field of the run")
    options = parser.parse_args(arguments)
    config = read_run(options.model, [*SETTINGS, f"data.source={options.data}", *options.set])
    options.out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(options.out / SAMPLES, options.minutes, options.seconds)
    if sampler.earlier < options.minutes:
        trainer = start_run(config, options.out, resume=True, callbacks=[sampler])
        trainer.train()
        if trainer.interrupted:
            raise SystemExit("stopped; the same command goes on")
    found = figures(read_samples(options.out / SAMPLES))
    options.raw.mkdir(parents=True, exist_ok=True)
    replace_file(options.raw / "figures.json", json.dumps({**found, "environment": environment()}, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
