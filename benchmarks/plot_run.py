"""Draw the loss curve of a run: python benchmarks/plot_run.py metrics.jsonl curve.svg (needs matplotlib)."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main(metrics: str, picture: str) -> None:
    records = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    train, validation = ([r for r in records if r["kind"] == kind] for kind in ("train", "validation"))
    plt.rcParams["svg.hashsalt"] = "sqat"  # the same file for the same numbers
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([r["tokens"] / 1e6 for r in train], [r["loss"] for r in train], label="training", color="#0072B2", lw=1)
    axes.plot(
        [r["tokens"] / 1e6 for r in validation],
        [r["loss"] for r in validation],
        label="validation",
        color="#D55E00",
        marker="o",
    )
    axes.set(xlabel="training targets, millions", ylabel="loss, nats per real token", ylim=(2, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
