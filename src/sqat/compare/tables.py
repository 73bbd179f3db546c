"""The report's tables, as rows of text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sqat.compare.card_figures import LOSS_ORDER, MICRO, TIME_ORDER
from sqat.compare.results import Comparison
from sqat.compare.statistics import Summary, differences, ordering, summarise
from sqat.config import ModelConfig
from sqat.cost import flops_per_token

LENGTHS = (256, 1024, 4096, 32768, 131072)


class TextTable(NamedTuple):
    """A heading, columns, rows (the first cell names the row), and what a reader must know."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def all_tables(comparison: Comparison) -> list[TextTable]:
    """In the order in which they are read; those without anything to show are left out."""
    makers: list[Callable[[Comparison], TextTable | None]] = [
        quality,
        against_reference,
        card,
        orderings,
        speed,
        attention,
        sizes,
        complexity,
        router,
    ]
    return [table for make in makers if (table := make(comparison)) is not None]


def quality(comparison: Comparison) -> TextTable:
    """Right metrics of the last evaluation, mean and interval over seeds."""
    figures = {
        "loss": ("evaluation", "loss"),
        "perplexity": ("evaluation", "perplexity"),
        "accuracy": ("evaluation", "accuracy"),
        "bits per byte": ("evaluation", "bits_per_byte"),
        "recall probes": ("probes", "accuracy"),
    }
    found = {name: comparison.by_seed(*path) for name, path in figures.items()}
    found = {name: values for name, values in found.items() if values}
    rows = [
        [name, str(len(comparison.of(name)))]
        + [
            _interval(values.get(name), percent=figure in ("accuracy", "recall probes"))
            for figure, values in found.items()
        ]
        for name in comparison.variants
    ]
    notes = ["mean ± half of its 95 % interval over seeds (Student's t); real targets only, padding never counts"]
    if "recall probes" in found:
        notes.append("recall probes: share of stories whose told word is likelier than four others; chance is 20 %")
    return TextTable("Quality on validation data", ["variant", "seeds", *found], rows, notes)


def against_reference(comparison: Comparison) -> TextTable | None:
    """Differences in loss, seed by seed."""
    reference = comparison.plan.reference
    found = differences(comparison.by_seed("evaluation", "loss"), reference)
    if not found:
        return None
    rows = [
        [name, _signed(d.summary), f"{d.p:.3g}", f"{d.adjusted_p:.3g}", _loss_verdict(d.verdict)]
        for name, d in found.items()
    ]
    notes = [
        "for one seed all variants see the same data in the same order and begin equal in every tensor they share",
        f"{len(rows)} differences are tested at once: p is corrected after Holm, and below 0.05 counts",
    ]
    columns = ["variant", "difference in loss", "p", "p, corrected", "verdict"]
    return TextTable(f"Loss against {reference}, seed by seed", columns, rows, notes)


def card(comparison: Comparison) -> TextTable | None:
    """Ours by the card's metrics, beside the card's."""
    if comparison.plan.family != "micro":
        return None
    loss, accuracy = comparison.by_seed("evaluation", "card_loss"), comparison.by_seed("evaluation", "card_accuracy")
    rows = []
    for name in comparison.variants:
        theirs = MICRO.get(name)
        rows.append(
            [
                name,
                _interval(loss.get(name)),
                f"{theirs.loss:.3f}" if theirs else "–",
                _interval(accuracy.get(name), percent=True),
                f"{100 * theirs.accuracy:.2f} %" if theirs else "–",
            ]
        )
    notes = [
        "padding counted as targets, as the card does; where the plan packs rows, ours never learned to predict it",
        "the card's figures are of five epochs of the whole TinyStories (2.3 B tokens), one run each",
    ]
    columns = ["variant", "loss, padding counted", "card's loss", "accuracy, padding counted", "card's accuracy"]
    return TextTable("The card's metrics beside the card's figures", columns, rows, notes)


def orderings(comparison: Comparison) -> TextTable | None:
    """Which of the card's orderings hold."""
    if comparison.plan.family != "micro":
        return None
    loss, seconds = comparison.by_seed("evaluation", "loss"), comparison.time_ratios("step_seconds")
    rows = [_claim("loss", loss, *claim) for claim in LOSS_ORDER] + [
        _claim("time", seconds, *claim) for claim in TIME_ORDER
    ]
    notes = [
        "loss: paired over seeds; time: a training step, paired over the timing pass's rounds; p < 0.05, each by itself"
    ]
    return TextTable("The card's orderings", ["claim", "here"], rows, notes)


def _claim(what: str, values: Mapping[str, Mapping[int, float]], lower: str, higher: str, equal: bool) -> list[str]:
    return [f"{what}: {lower} {'≈' if equal else '<'} {higher}", ordering(values, lower, higher, equal=equal)]


def speed(comparison: Comparison) -> TextTable | None:
    """The timing pass: medians, and ratios taken round by round."""
    timing = comparison.timing
    if timing is None:
        return None
    ratios = comparison.time_ratios("step_seconds")
    reference, rows = comparison.plan.reference, []
    for name, entry in timing["variants"].items():
        own = list(ratios.get(name, {}).values())
        prompt = entry["prompt_tokens"] / statistics.median(entry["prompt_seconds"])
        rows.append(
            [
                name,
                f"{statistics.median(entry['step_seconds']):.3f}",
                f"{statistics.median(own):.3f} [{min(own):.3f} … {max(own):.3f}]" if own else "–",
                f"{statistics.median(entry['evaluate_seconds']):.3f}",
                f"{prompt:,.0f}",
                f"{1 / statistics.median(entry['decode_seconds_per_token']):,.0f}",
            ]
        )
    notes = [
        f"{timing['rounds']} rounds, every variant in turn; batches of {timing['batch_size']} × {timing['context']}; "
        f"{timing['environment'].get('cpu')}, {timing['environment'].get('threads')} threads",
        "median; ratios within rounds, median and range. Wall clocks of training runs are not compared",
    ]
    columns = [
        "variant",
        "training step, s",
        f"against {reference}",
        "evaluation, s",
        "prompt, tokens/s",
        "decoding, tokens/s",
    ]
    return TextTable("Time", columns, rows, notes)


def attention(comparison: Comparison) -> TextTable | None:
    """Attention alone, forward and backward."""
    timing = comparison.timing
    if timing is None or not next(iter(timing["variants"].values()))["attention"]:
        return None
    lengths = list(next(iter(timing["variants"].values()))["attention"])
    rows = [
        [name, *(f"{1000 * statistics.median(entry['attention'][length][1]):.1f}" for length in lengths)]
        for name, entry in timing["variants"].items()
    ]
    columns = ["variant", *(f"{int(length):,} tokens" for length in lengths)]
    return TextTable(
        "Attention alone, forward and backward, ms", columns, rows, ["the same number of tokens at all lengths"]
    )


def sizes(comparison: Comparison) -> TextTable:
    """Parameters, cache, memory, and what the budget bought."""
    rows = []
    for name in comparison.variants:
        run = comparison.of(name)[0]
        peak = statistics.median(run["peak_bytes"] for run in comparison.of(name))
        rows.append(
            [
                name,
                f"{run['parameters']['total'] / 1e6:.2f} M",
                f"{run['parameters']['active'] / 1e6:.2f} M",
                f"{run['kv_bytes_per_token']:,}",
                f"{peak / 1e6:,.0f}",
                f"{run['steps']:,}",
                f"{run['tokens'] / 1e6:.2f} M",
                f"{run['flops']:.3g}",
            ]
        )
    columns = ["variant", "parameters", "active", "cache bytes/token", "peak memory, MB", "steps", "tokens", "FLOPs"]
    return TextTable("Size and budget", columns, rows, ["cache in 16-bit values; peak memory of the run's process"])


def complexity(comparison: Comparison) -> TextTable:
    """The card's formulas with the numbers filled in, and operations counted."""
    rows = []
    for name in comparison.variants:
        model = ModelConfig.from_dict(comparison.of(name)[0]["model"])
        width, kv = model.num_score_heads * model.head_dim, model.num_kv_heads * model.head_dim
        counts = [f"{flops_per_token(model, length).total / 1e6:,.1f}" for length in LENGTHS]
        rows.append([name, f"O(N·{width} · N·{kv})", f"{model.num_heads}/{model.num_score_heads}", *counts])
    columns = ["variant", "the card's formula", "H/Hq", *(f"{length:,}" for length in LENGTHS)]
    notes = [
        "millions of operations of one token's forward pass, whole model, by context length",
        "the card multiplies query and key/value widths; scores and sums cost query heads alone (arXiv 2510.01817)",
    ]
    return TextTable("Complexity", columns, rows, notes)


def router(comparison: Comparison) -> TextTable | None:
    """How evenly experts were chosen."""
    rows = []
    for name in comparison.variants:
        loads = [run["evaluation"].get("router_load") for run in comparison.of(name)]
        if not all(loads):
            return None
        shares = [share * len(layer) for load in loads for layer in load for share in layer]
        entropy = statistics.fmean(run["evaluation"]["router_entropy"] for run in comparison.of(name))
        rows.append([name, f"{max(shares):.2f}", f"{min(shares):.2f}", f"{entropy:.3f}"])
    notes = ["load relative to an even share, over all layers and seeds; entropy in nats per token"]
    return TextTable("Experts", ["variant", "busiest", "least busy", "router entropy"], rows, notes)


def _interval(values: Mapping[int, float] | None, *, percent: bool = False) -> str:
    if not values:
        return "–"
    scale, digits, unit = (100, 2, " %") if percent else (1, 4, "")
    summary = summarise([scale * value for value in values.values()])
    half = "" if math.isinf(summary.half) else f" ± {summary.half:.{digits}f}"
    return f"{summary.mean:.{digits}f}{half}{unit}"


def _signed(summary: Summary) -> str:
    half = "" if math.isinf(summary.half) else f" ± {summary.half:.4f}"
    return f"{summary.mean:+.4f}{half}"


def _loss_verdict(verdict: str) -> str:
    return {"higher": "worse", "lower": "better"}.get(verdict, verdict)
