"""Make README.md's tables and the pictures from raw/ alone: python benchmarks/padding-and-router/figures.py [FOLDER]

FOLDER, this file's own by default, holds raw/ and a README.md with the two lines between which the tables stand. Needs
matplotlib.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
PADDING = {  # Okabe and Ito's palette, and markers, for readers who do not tell colours apart
    "packed": ("packed, no padding", "#0072B2", "o"),
    "rows": ("padded rows, padding not a target", "#E69F00", "s"),
    "rows-padding": ("padded rows, padding a target (the card)", "#009E73", "^"),
}
ROUTER = {"packed": ("balanced", "#0072B2", "o"), "packed-card-router": ("the card's", "#D55E00", "s")}
UNUSED = 0.1  # of an even share
Log = list[dict[str, Any]]


def read(folder: Path) -> dict[str, Log]:
    """The log of every run that is done, by name."""
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted((folder / "raw").glob("*.jsonl"))
    }


def validations(log: Log) -> Log:
    return [line for line in log if line["kind"] == "validation"]


def loads(evaluation: dict[str, Any]) -> list[list[float]]:
    """By layer, each expert's load relative to an even share, from the busiest to the least busy."""
    return [sorted((share * len(layer) for share in layer), reverse=True) for layer in evaluation["router_load"]]


def table(columns: list[str], rows: list[list[str]]) -> str:
    head = [f"| {' | '.join(columns)} |", f"|---{'|--:' * (len(columns) - 1)}|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def padding_table(runs: dict[str, Log]) -> str:
    rows = []
    for name, (label, *_) in PADDING.items():
        if name in runs:
            last = validations(runs[name])[-1]
            right = [f"{last['loss']:.4f}", f"{last['perplexity']:.2f}", f"{last['accuracy']:.2%}"]
            card = [f"{last['card_loss']:.4f}", f"{last['card_accuracy']:.2%}"]
            rows.append([label, f"{last['step']:,}", *right, *card])
    columns = ["trained on", "steps", "loss", "perplexity", "accuracy", "loss, padding counted"]
    return table([*columns, "accuracy, padding counted"], rows)


def router_table(runs: dict[str, Log]) -> str:
    rows = []
    for name, (label, *_) in ROUTER.items():
        for number, layer in enumerate(loads(validations(runs[name])[-1]) if name in runs else [], 1):
            spread = statistics.pstdev(layer)
            idle = sum(load < UNUSED for load in layer)
            rows.append([label, str(number), f"{layer[0]:.2f}", f"{layer[-1]:.2f}", f"{spread:.2f}", str(idle)])
    return table(["router loss", "layer", "busiest", "least busy", "spread", f"below {UNUSED:g}"], rows)


def router_quality_table(runs: dict[str, Log]) -> str:
    rows = []
    for name, (label, *_) in ROUTER.items():
        if name in runs:
            last = validations(runs[name])[-1]
            figures = [f"{last['loss']:.4f}", f"{last['accuracy']:.2%}", f"{last['bits_per_byte']:.4f}"]
            rows.append([label, *figures, f"{last['router_entropy']:.3f}"])
    return table(["router loss", "loss", "accuracy", "bits per byte", "router entropy, nats"], rows)


def draw_router(runs: dict[str, Log], path: Path) -> None:
    """A panel for each layer."""
    last = {name: loads(validations(runs[name])[-1]) for name in ROUTER if name in runs}
    layers = max(len(found) for found in last.values())
    columns = min(3, layers)
    figure = Figure(figsize=(3.1 * columns, 2.6 * -(-layers // columns) + 0.5), layout="constrained")
    panels = figure.subplots(-(-layers // columns), columns, sharex=True, sharey=True, squeeze=False)
    for number, axes in enumerate(panels.flat):
        axes.set_visible(number < layers)
        for name, found in last.items():
            label, colour, marker = ROUTER[name]
            if number < len(found):
                places = range(1, len(found[number]) + 1)
                axes.plot(places, found[number], color=colour, marker=marker, markersize=4, lw=1.4, label=label)
        axes.axhline(1, color="0.45", linestyle=":", lw=1.2, label="even share")
        axes.set_title(f"layer {number + 1}", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0][0].set_ylim(bottom=0)  # of all, which share it
    figure.supxlabel("expert, from the busiest to the least busy", fontsize=10)
    figure.supylabel("load relative to an even share", fontsize=10)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, title="router loss")
    figure.savefig(path, dpi=130, metadata={"Software": None})


def draw_padding(runs: dict[str, Log], path: Path) -> None:
    """The same models scored both ways, over the epoch."""
    figure = Figure(figsize=(9.3, 4.1), layout="constrained")
    for axes, figure_name, title in zip(
        figure.subplots(1, 2),
        ("loss", "card_loss"),
        ("over real tokens", "padding counted, as the card does"),
        strict=True,
    ):
        for (name, (label, colour, marker)), line in zip(PADDING.items(), ("-", "--", ":"), strict=True):
            points = validations(runs.get(name, []))
            x, y = [p["step"] / points[-1]["step"] for p in points], [p[figure_name] for p in points]
            look = {"marker": marker, "markersize": 6, "markerfacecolor": "none", "linestyle": line}
            axes.plot(x, y, color=colour, lw=1.4, label=label, **look)  # hollow and broken: lines may lie on each other
        axes.set(xlabel="share of the epoch", ylabel="validation loss, nats", title=title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title="trained on")
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main(folder: Path) -> None:
    runs = read(folder)
    if missing := sorted(({*PADDING} | {*ROUTER}) - {*runs}):
        print(f"not done yet, and left out: {', '.join(missing)}")
    if not runs:
        sys.exit(f"{folder / 'raw'} has no results yet: README.md says how to make them")
    readme = folder / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        sys.exit(f"{readme} must hold the lines {BEGIN} and {END}, between which the tables go")
    settings = {"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context({**settings, "legend.frameon": False, "font.size": 9.5}):
        parts = []
        if PADDING.keys() & runs.keys():
            draw_padding(runs, folder / "padding.png")
            parts += ["### Padding", padding_table(runs), "![validation loss, scored both ways](padding.png)"]
        if ROUTER.keys() & runs.keys():
            draw_router(runs, folder / "router.png")
            parts += ["### Router loss", router_quality_table(runs), router_table(runs)]
            parts += ["![load of each expert, by layer](router.png)"]
    readme.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
