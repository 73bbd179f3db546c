"""The report's tables, in the order in which they are read."""

import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from sqat.compare.folder import Comparison
from sqat.compare.statistics import Summary, differences, median_interval, summarise
from sqat.cost import attention_speedup, flops_per_token, kv_bytes, kv_bytes_per_token, parameters

QUALITY = {
    "loss": ("evaluation", "loss"),
    "perplexity": ("evaluation", "perplexity"),
    "accuracy": ("evaluation", "accuracy"),
    "bits per byte": ("evaluation", "bits_per_byte"),
    "recall probes": ("probes", "accuracy"),
}
PERCENT = ("accuracy", "recall probes")
LENGTHS = (256, 1024, 4096, 32768, 131072)  # of contexts, whose operations are told
STREAM = 32768  # tokens of the stream whose cache is told
NONE = "–"


class Table(NamedTuple):
    """A heading, columns, rows of text (the first cell names the row), and what a reader must know."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def all_tables(comparison: Comparison) -> list[Table]:
    """All tables that have something to show."""
    makers: list[Callable[[Comparison], Table | None]] = [
        quality,
        against_reference,
        speed,
        partial(attention, series=0),
        partial(attention, series=1),
        sizes,
        operations,
        every_run,
    ]
    return [table for make in makers if (table := make(comparison)) is not None]


def quality(comparison: Comparison) -> Table | None:
    """The last evaluation's metrics: mean and interval over seeds."""
    if not comparison.runs:
        return None
    found = {metric: values for metric, path in QUALITY.items() if (values := comparison.by_seed(*path))}
    rows = [
        [name, str(len(comparison.runs_of(name)))]
        + [_written(metric, [*values.get(name, {}).values()]) for metric, values in found.items()]
        for name in comparison.variants
    ]
    notes = ["mean ± half of its 95 % interval over seeds (Student's t); real targets only, padding never counts"]
    if "recall probes" in found:
        notes.append("recall probes: share of stories whose told word is likelier than four others; chance is 20 %")
    return Table("Quality on validation data", ["variant", "seeds", *found], rows, notes)


def against_reference(comparison: Comparison) -> Table | None:
    """Differences to the reference, seed by seed."""
    reference = comparison.plan.reference
    found = {metric: differences(comparison.by_seed(*QUALITY[metric]), reference) for metric in ("loss", *PERCENT)}
    loss = found.pop("loss")
    if not loss:
        return None
    others = {metric: values for metric, values in found.items() if values}
    rows = [
        [name, _written("loss", d.summary, "+"), f"{d.summary.p:.3g}", f"{d.adjusted_p:.3g}", d.verdict]
        + [_written(metric, v[name].summary if name in v else [], "+") for metric, v in others.items()]
        for name, d in loss.items()
    ]
    notes = [
        "for one seed all variants see the same data in the same order and begin equal in every tensor they share",
        f"differences in loss tested at once: {len(rows)}; p is corrected after Holm, and below 0.05 counts; "
        "other figures have intervals (95 %, each by itself) and no test",
    ]
    columns = ["variant", "difference in loss", "p", "p, corrected", "verdict", *(f"in {name}" for name in others)]
    return Table(f"Against {reference}, seed by seed", columns, rows, notes)


def undecided(comparison: Comparison) -> list[str]:
    """Names of the variants whose loss cannot be told apart from the reference's."""
    found = differences(comparison.by_seed("evaluation", "loss"), comparison.plan.reference)
    return [name for name, difference in found.items() if not difference.told_apart]


def speed(comparison: Comparison) -> Table | None:
    """The timing pass: medians, and ratios taken round by round."""
    timing, reference = comparison.timing, comparison.plan.reference
    if timing is None:
        return None
    ratios, rows = comparison.time_ratios("step_seconds"), []
    for name, times in timing["variants"].items():
        own = list(ratios[name].values())
        row = [
            name,
            f"{statistics.median(times['step_seconds']):.3f}",
            "{:.3f} [{:.3f} … {:.3f}]".format(statistics.median(own), *median_interval(own)),
            f"{statistics.median(times['evaluate_seconds']):.3f}",
            f"{times['prompt_tokens'] / statistics.median(times['prompt_seconds']):,.0f}",
            f"{1 / statistics.median(times['decode_seconds_per_token']):,.0f}",
        ]
        rows.append(row)
    place = timing["environment"]
    load = f"{place['load'][0]:.1f}" if place.get("load") else "unknown"
    notes = [
        f"rounds: {timing['rounds']}, every variant in turn; batches of {timing['batch_size']} × "
        f"{timing['context']}; {place.get('gpu') or place.get('cpu')}, threads: {place.get('threads')}; "
        f"revision {place.get('revision')}, mean load of the minute before: {load}",
        "medians; steps are taken in turn, and the ratio has the 95 % interval of its median (of fewer than six: their "
        "range). Wall clocks of training runs are not compared",
        "forward: the same batch to the last layer, without head or gradient",
    ]
    columns = ["variant", "training step, s", f"against {reference}", "forward, s"]
    columns += ["prompt, tokens/s", "decoding, tokens/s"]
    return Table("Time", columns, rows, notes)


def attention(comparison: Comparison, series: int) -> Table | None:
    """Attention alone; `series` is 0 for the forward pass without gradient, 1 for forward and backward."""
    timing = comparison.timing
    if timing is None or not (lengths := list(next(iter(timing["variants"].values()))["attention"])):
        return None
    reference, rows = comparison.plan.reference, []
    base = timing["variants"][reference]["attention"]
    for name, entry in timing["variants"].items():
        row = [name]
        for length in lengths:
            times = entry["attention"][length][series]
            ratio = statistics.median(a / b for a, b in zip(base[length][series], times, strict=True))
            row.append(f"{1000 * statistics.median(times):.1f} ({ratio:.2f})")
        rows.append(row)
    columns = ["variant", *(f"{int(length):,} tokens" for length in lengths)]
    notes = [
        "the same number of tokens at all lengths",
        f"median; in brackets how many times as fast as {reference}, median of the rounds' ratios",
    ]
    return Table(f"Attention alone, {('forward', 'forward and backward')[series]}, ms", columns, rows, notes)


def sizes(comparison: Comparison) -> Table:
    """Parameters and cache, and where there are runs: memory, and what the budget bought."""
    columns = ["variant", "query heads", "key/value heads", "parameters", "active", "cache bytes/token"]
    columns += [f"cache of {STREAM:,} tokens, MB"]
    columns += ["peak memory, MB", "steps", "tokens", "FLOPs"] if comparison.runs else []
    rows = []
    for name, model in comparison.models.items():
        counted = parameters(model)
        row = [name, str(model.num_query_heads), str(model.num_kv_heads), f"{counted.total / 1e6:.2f} M"]
        row += [
            f"{counted.active / 1e6:.2f} M",
            f"{kv_bytes_per_token(model):,}",
            f"{kv_bytes(model, STREAM) / 1e6:,.3g}",
        ]
        if runs := comparison.runs_of(name):
            row += [f"{statistics.median(run['peak_bytes'] for run in runs) / 1e6:,.0f}", *_bought(runs[0])]
        rows.append(row)
    notes = ["cache in 16-bit values; a window bounds it"]
    if comparison.runs:
        notes.append("peak memory of the run's process, median over seeds; on a GPU of its tensors")
    return Table("Size and budget" if comparison.runs else "Size", columns, rows, notes)


def operations(comparison: Comparison) -> Table:
    """Where a token's operations go at the model's own context, and how they grow with it."""
    models, reference = comparison.models, comparison.plan.reference
    base = flops_per_token(models[reference]).total if reference in models else None
    rows = []
    for name, model in models.items():
        cost = flops_per_token(model)
        parts = [f"{part / 1e6:,.3f}" for part in cost]
        share = f"{cost.total / base:.3f}" if base else NONE
        longer = [f"{flops_per_token(model, length).total / 1e6:,.1f}" for length in LENGTHS]
        speedup = f"{attention_speedup(model):.3g}"
        rows.append([name, speedup, *parts, f"{cost.total / 1e6:,.2f}", share, *longer])
    context = next(iter(models.values())).context_length
    columns = ["variant", "H/Hq", "projections", "scores and sums", "feed-forward", "head", "all"]
    columns += [f"against {reference}", *(f"{length:,}" for length in LENGTHS)]
    notes = [
        "H/Hq: how many times cheaper scores and weighted sums are than full attention's (H/Hkv where Hkv is more)",
        f"millions of operations of one token's forward pass in a sequence of {context:,}, and right of that of the "
        "whole model in longer or shorter ones; a multiply-add is two, and training takes three times as many",
    ]
    return Table("Operations", columns, rows, notes)


def every_run(comparison: Comparison) -> Table | None:
    """The results of each run."""
    if not comparison.runs:
        return None
    found = {metric: values for metric, path in QUALITY.items() if (values := comparison.by_seed(*path))}
    rows = []
    for run in comparison.runs:
        name, seed, minutes = run["variant"], run["seed"], (run.get("seconds") or math.nan) / 60
        scores = [
            _written(metric, [values[name][seed]] if seed in values.get(name, {}) else [])
            for metric, values in found.items()
        ]
        busy = "*" * bool(run.get("shared_machine"))
        rows.append(
            [name, str(seed), *_bought(run), *scores, f"{run['peak_bytes'] / 1e6:,.0f}", f"{minutes:.1f}{busy}"]
        )
    notes = [
        "peak memory of the run's own process, on a GPU of its tensors; minutes of training steps by the wall clock, "
        "which mean nothing beside other runs on the same machine (*): the timing pass has others"
    ]
    columns = ["variant", "seed", "steps", "tokens", "FLOPs", *found, "peak MB", "minutes"]
    return Table("Every run", columns, rows, notes)


def _bought(run: Mapping[str, Any]) -> list[str]:
    """Steps, tokens and operations of a run."""
    return [f"{run['steps']:,}", f"{run['tokens'] / 1e6:.3g} M", f"{run['flops']:.3g}"]


def _written(metric: str, values: Summary | list[float], sign: str = "") -> str:
    """The mean of a metric, or with the sign "+" of a difference in it, ± half of its interval."""
    if not values:
        return NONE
    summary = values if isinstance(values, Summary) else summarise(values)
    scale, digits, unit = (1, 2 if metric == "perplexity" else 4, "")
    if metric in PERCENT:
        scale, digits, unit = (100, 2, " points" if sign else " %")
    half = "" if math.isinf(summary.half) else f" ± {scale * summary.half:.{digits}f}"
    return f"{scale * summary.mean:{sign}.{digits}f}{half}{unit}"
