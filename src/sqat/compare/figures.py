"""The report's figures: lines over seeds with a band from the lowest to the highest, every variant always in its own
colour and marker (Okabe and Ito's palette, which colour-blind readers can tell apart too).
"""

import io
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from sqat.compare.folder import Comparison
from sqat.compare.statistics import median_interval

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C8C00", "#7F7F7F")
MARKERS = "osD^vPX"  # as many as share no factor with the colours
ORDER = ("mha", "gqa", "mqa", "sqa", "ssqa", "xsqa", "xsmqa", "lsqa", "rsqa")
GREY = "#808080"  # legible on white and on black
SIZE = (7.6, 4.3)
STYLE: dict[str, Any] = {
    "svg.hashsalt": "sqat",  # the same bytes every time
    "svg.fonttype": "none",
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "axes.titlecolor": GREY,
    "axes.facecolor": "none",
    "legend.frameon": False,
}
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}  # a legend that hides no line
LABELS = {
    "tokens": "training tokens",
    "flops": "training operations (FLOP)",
    "time": "training time, minutes (steps × measured time of a step)",
}

Run = dict[str, Any]


def draw_all(comparison: Comparison) -> dict[str, tuple[str, str, bytes]]:
    """Draw every figure that has data: (title, SVG to stand within a page, PNG) by file name."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawers: dict[str, tuple[str, Callable[..., bool]]] = {
        "loss-tokens": ("Validation loss against training tokens", partial(_loss_over, axis="tokens")),
        "loss-flops": ("Validation loss against training operations", partial(_loss_over, axis="flops")),
        "loss-time": ("Validation loss against training time", partial(_loss_over, axis="time")),
        "pareto": ("Loss and time of a training step", _pareto),
        "attention": ("Attention alone, forward and backward", _attention),
    }
    found = {}
    with mpl.rc_context(STYLE):
        for name, (title, draw) in drawers.items():
            figure = Figure(figsize=SIZE, layout="constrained")
            if not draw(figure.add_subplot(), comparison=comparison):
                continue
            svg, png = io.BytesIO(), io.BytesIO()
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
            figure.savefig(png, format="png", dpi=130, facecolor="white", metadata={"Software": None})
            text = svg.getvalue().decode()
            found[name] = (title, text[text.index("<svg") :], png.getvalue())  # a page has no XML head within it
    return found


def look_of(comparison: Comparison, name: str) -> dict[str, Any]:
    """Colour and marker of a variant, the same in every figure."""
    names = [*ORDER, *(variant.name for variant in comparison.plan.models() if variant.name not in ORDER)]
    place = names.index(name)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}


def _loss_over(axes: Any, comparison: Comparison, axis: str) -> bool:
    """Time is steps times the timing pass's seconds of a step, not a wall clock."""
    from matplotlib.ticker import EngFormatter

    timed = comparison.timing["variants"] if comparison.timing else {}
    seconds = {name: statistics.median(times["step_seconds"]) for name, times in timed.items()}
    if axis == "time" and not seconds.keys() >= {*comparison.variants}:
        return False

    def place(run: Run, point: dict[str, Any]) -> float:
        return point["step"] * seconds[run["variant"]] / 60 if axis == "time" else point[axis]

    low, high = math.inf, -math.inf  # of all losses but the first quarter's
    for name in comparison.variants:
        runs = comparison.runs_of(name)
        points = min((len(run["curve"]) for run in runs), default=0)
        if points < 2:
            continue
        x = [place(runs[0], point) for point in runs[0]["curve"][:points]]
        losses = [[run["curve"][i]["loss"] for run in runs] for i in range(points)]
        mean = [statistics.fmean(at) for at in losses]
        look = look_of(comparison, name)
        axes.plot(x, mean, label=f"{name} ({mean[-1]:.3f})", markevery=max(1, points // 8), linewidth=1.4, **look)
        axes.fill_between(x, [min(at) for at in losses], [max(at) for at in losses], color=look["color"], alpha=0.1)
        low, high = min(low, *map(min, losses[points // 4 :])), max(high, *map(max, losses[points // 4 :]))
    if math.isinf(low):
        return False
    if axes.get_xlim()[1] >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    axes.set(xlabel=LABELS[axis], ylabel="validation loss, nats per token")
    axes.legend(title="variant (last)", fontsize=9, **BESIDE)
    return True


def _pareto(axes: Any, comparison: Comparison) -> bool:
    """Mean loss with its range over seeds, against the time of a step relative to the reference, with its interval."""
    ratios, losses = comparison.time_ratios("step_seconds"), comparison.by_seed("evaluation", "loss")
    points = []
    for name in comparison.variants:
        if name not in ratios or name not in losses:
            continue
        times, values = list(ratios[name].values()), list(losses[name].values())
        x, y = statistics.median(times), statistics.fmean(values)
        points.append((x, y))
        low, high = median_interval(times)
        spread = {"xerr": [[x - low], [high - x]], "yerr": [[y - min(values)], [max(values) - y]]}
        look = look_of(comparison, name)
        axes.errorbar(x, y, **spread, fmt=look["marker"], color=look["color"], capsize=2, alpha=0.8)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(7, 6), color=look["color"], fontsize=10)
    if not points:
        return False
    front = [p for p in sorted(points) if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    axes.plot(*zip(*front, strict=True), color=GREY, linestyle="--", linewidth=1, zorder=0, label="Pareto front")
    axes.margins(x=0.12)
    axes.set(xlabel=f"time of a training step, relative to {comparison.plan.reference}", ylabel="validation loss, nats")
    axes.legend()
    return True


def _attention(axes: Any, comparison: Comparison) -> bool:
    """Log-log, so that operations would be straight lines."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    lengths: list[int] = []
    for name, entry in (comparison.timing or {"variants": {}})["variants"].items():
        lengths = [int(length) for length in entry["attention"]]
        if len(lengths) < 2:
            return False
        milliseconds = [1000 * statistics.median(both) for _, both in entry["attention"].values()]
        axes.plot(lengths, milliseconds, label=name, linewidth=1.4, **look_of(comparison, name))
    if not lengths:
        return False
    axes.set(xscale="log", yscale="log", xlabel="sequence length", ylabel="ms for the same number of tokens")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.legend(fontsize=9, **BESIDE)
    return True
