"""bfloat16 against float32: the same 300 steps in both, for several seeds.

    python benchmarks/precision/curve.py DATA [--steps 300] [--seeds 3]

Writes curve.json (mean loss of every ten steps) and curve.png beside this file. Dropout is off, so that the two runs of
a seed differ in precision alone.
"""

import argparse
import json
import statistics
from pathlib import Path

import sqat
from sqat.data.batches import Batches
from sqat.train import Callback
from sqat.train.prepare import prepare_data

HERE = Path(__file__).parent
EVERY = 10


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, trainer, metrics) -> None:
        self.values.append(metrics["loss"])


def losses(data, precision: str, seed: int, steps: int) -> list[float]:
    """Mean training loss of every ten steps."""
    import torch

    torch.manual_seed(seed)
    model = sqat.Decoder(sqat.preset("sqat-mm").replace(feedforward_dropout=0.0))
    batches = Batches(data.train, batch_size=16, context_length=256, seed=seed)
    config = sqat.TrainConfig(max_steps=steps, precision=precision, learning_rate=2e-3, log_every=EVERY, device="cpu")
    log = Losses()
    sqat.Trainer(model, batches, config, callbacks=[log]).train()
    return log.values


def plot(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 2), layout="constrained")
    for (seed, pair), colour in zip(curves.items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False):
        steps = [EVERY * (i + 1) for i in range(len(pair["float32"]))]
        top.plot(steps, pair["float32"], color=colour, label=f"float32, seed {seed}")
        top.plot(steps, pair["bf16"], "--", color=colour, label=f"bfloat16, seed {seed}")
        gap = [b - f for b, f in zip(pair["bf16"], pair["float32"], strict=True)]
        bottom.plot(steps, gap, color=colour, label=f"seed {seed}")
    top.set(ylabel="training loss, nats", title="sqat-mm on TinyStories, 16 × 256 tokens a step")
    top.legend(ncols=2)
    bottom.axhline(0, color="0.6", linewidth=0.8)
    bottom.set(xlabel="step", ylabel="bfloat16 − float32, nats")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a source, as for `sqat train --data`")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = prepare_data(sqat.DataConfig(source=options.data), vocab_size=5000)
    curves: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        curves[str(seed)] = {p: losses(data, p, seed, options.steps) for p in ("float32", "bf16")}
        tail = {p: statistics.mean(values[-5:]) for p, values in curves[str(seed)].items()}
        print(f"seed {seed}: last 50 steps, float32 {tail['float32']:.4f}, bfloat16 {tail['bf16']:.4f}", flush=True)
        (HERE / "curve.json").write_text(json.dumps({"every": EVERY, "curves": curves}, indent=1))
    plot(curves, HERE / "curve.png")


if __name__ == "__main__":
    main()
