"""The report's tables: all of them in order, and those that say how good the variants are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from sqat.compare.card_figures import Claim, published
from sqat.compare.results import Comparison
from sqat.compare.statistics import CONFIDENCE, Values, differences, ordering
from sqat.compare.tables_cost import complexity, operations, router, sizes
from sqat.compare.tables_time import attention, speed
from sqat.compare.text_table import TextTable, interval, signed

QUALITY = {
    "loss": ("evaluation", "loss"),
    "perplexity": ("evaluation", "perplexity"),
    "accuracy": ("evaluation", "accuracy"),
    "bits per byte": ("evaluation", "bits_per_byte"),
    "recall probes": ("probes", "accuracy"),
}
PERCENT = ("accuracy", "recall probes")


def all_tables(comparison: Comparison) -> list[TextTable]:
    """In the order in which they are read; those without anything to show are left out."""
    makers: list[Callable[[Comparison], TextTable | None]] = [
        quality,
        against_reference,
        beside_published,
        orderings,
        speed,
        partial(attention, series=0),
        partial(attention, series=1),
        sizes,
        complexity,
        operations,
        router,
        every_run,
    ]
    return [table for make in makers if (table := make(comparison)) is not None]


def quality(comparison: Comparison) -> TextTable | None:
    """Right metrics of the last evaluation, mean, interval and deviation over seeds."""
    found = {name: values for name, path in QUALITY.items() if (values := comparison.by_seed(*path))}
    if not found:
        return None
    rows = [
        [name, str(len(comparison.of(name)))]
        + [
            interval(values.get(name), percent=figure in PERCENT, digits=2 if figure == "perplexity" else 4)
            for figure, values in found.items()
        ]
        for name in comparison.variants
    ]
    notes = [
        "mean ± half of its 95 % interval over seeds (Student's t), in brackets the standard deviation over seeds; "
        "real targets only, padding never counts"
    ]
    if "recall probes" in found:
        notes.append("recall probes: share of stories whose told word is likelier than four others; chance is 20 %")
    return TextTable("Quality on validation data", ["variant", "seeds", *found], rows, notes)


def against_reference(comparison: Comparison) -> TextTable | None:
    """Differences, seed by seed."""
    reference = comparison.plan.reference
    found = differences(comparison.by_seed("evaluation", "loss"), reference)
    if not found:
        return None
    others = {name: differences(comparison.by_seed(*QUALITY[name]), reference) for name in PERCENT}
    others = {name: values for name, values in others.items() if values}
    rows = [
        [name, signed(d.summary), f"{d.p:.3g}", f"{d.adjusted_p:.3g}", _loss_verdict(d.verdict)]
        + [signed(values[name].summary, percent=True) if name in values else "–" for values in others.values()]
        for name, d in found.items()
    ]
    notes = [
        "for one seed all variants see the same data in the same order and begin equal in every tensor they share",
        f"differences in loss tested at once: {len(rows)}; p is corrected after Holm, and below 0.05 counts; "
        "other figures have intervals (95 %, each by itself) and no test",
    ]
    columns = ["variant", "difference in loss", "p", "p, corrected", "verdict", *(f"in {name}" for name in others)]
    return TextTable(f"Against {reference}, seed by seed", columns, rows, notes)


def undecided(comparison: Comparison) -> list[str]:
    """Variants whose loss cannot be told apart from the reference's."""
    found = differences(comparison.by_seed("evaluation", "loss"), comparison.plan.reference)
    return [name for name, d in found.items() if d.summary.number < 2 or d.adjusted_p >= 1 - CONFIDENCE]


def beside_published(comparison: Comparison) -> TextTable | None:
    """Ours by the card's metrics, beside the card's, or the paper's."""
    theirs = published(comparison.plan)
    if theirs is None or not comparison.runs:
        return None
    loss, accuracy = comparison.by_seed("evaluation", "card_loss"), comparison.by_seed("evaluation", "card_accuracy")
    rows = []
    for name in comparison.variants:
        figures = theirs.figures.get(name)
        ours = interval(loss.get(name)), interval(accuracy.get(name), percent=True)
        other = (f"{figures.loss:g}", f"{100 * figures.accuracy:.2f} %") if figures else ("–", "–")
        rows.append([name, ours[0], other[0], ours[1], other[1]])
    notes = [
        "padding counted as targets, as the card does; "
        + (
            "ours learned to predict it too"
            if comparison.plan.data.padding_as_target
            else "ours never learned to predict it, and so looks worse by this measure than it is"
        ),
        f"{theirs.whose} figures: {theirs.how}; other data and other sizes of it: only the order can be compared",
    ]
    columns = ["variant", "loss, padding counted", f"{theirs.whose} loss", "accuracy, padding counted"]
    return TextTable(
        f"Beside {theirs.whose} figures, by its metrics", [*columns, f"{theirs.whose} accuracy"], rows, notes
    )


def orderings(comparison: Comparison) -> TextTable | None:
    """Which of the card's or the paper's orderings hold."""
    theirs = published(comparison.plan)
    if theirs is None:
        return None
    loss, seconds = comparison.by_seed("evaluation", "loss"), comparison.time_ratios("step_seconds")
    rows = _claims("loss", loss, theirs.loss_order) if loss else []
    rows += _claims("time", seconds, theirs.time_order, by_ranks=True) if seconds else []
    notes = ["loss: over real targets, paired over seeds; mean difference in nats, Student's t"] if loss else []
    if seconds:
        reference = comparison.plan.reference
        notes.append(
            f"time: training steps taken in turn, relative to {reference}'s; median difference, Wilcoxon's signed ranks"
        )
    notes.append("p < 0.05, each by itself")
    title = f"{theirs.whose[0].upper()}{theirs.whose[1:]} orderings"
    return TextTable(title, ["claim", "here", "second minus first", "p"], rows, notes) if rows else None


def _claims(what: str, values: Values, claims: Iterable[Claim], *, by_ranks: bool = False) -> list[list[str]]:
    rows = []
    for claim in claims:
        if claim.lower in values and claim.higher in values:
            found = ordering(values, claim.lower, claim.higher, equal=claim.equal, by_ranks=by_ranks)
            text = f"{what}: {claim.lower} {'≈' if claim.equal else '<'} {claim.higher}"
            rows.append([text, found.verdict, f"{found.gap:+.4f}", f"{found.p:.3g}"])
    return rows


def every_run(comparison: Comparison) -> TextTable | None:
    """What each run came to."""
    rows = [_run_row(run) for name in comparison.variants for run in comparison.of(name)]
    notes = [
        "peak memory of the run's own process, on a GPU of its tensors; minutes of training steps by the wall clock"
    ]
    if any(run.get("shared_machine") for run in comparison.runs):
        notes.append(
            "*: beside other runs on the same machine; such times mean nothing, and the timing pass has others"
        )
    columns = ["variant", "seed", "steps", "tokens", "FLOPs", "loss", "accuracy", "bits per byte"]
    columns += ["loss, padding counted", "accuracy, padding counted", "recall probes", "peak MB", "minutes"]
    return TextTable("Every run", columns, rows, notes) if rows else None


def _run_row(run: dict[str, Any]) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    evaluation, minutes = run["evaluation"], run.get("seconds")
    return [
        run["variant"],
        str(run["seed"]),
        f"{run['steps']:,}",
        f"{run['tokens'] / 1e6:.3g} M",
        f"{run['flops']:.3g}",
        f"{evaluation['loss']:.4f}",
        f"{evaluation['accuracy']:.2%}",
        f"{evaluation['bits_per_byte']:.4f}",
        cell(evaluation.get("card_loss"), ".4f"),
        cell(evaluation.get("card_accuracy"), ".2%"),
        cell((run.get("probes") or {}).get("accuracy"), ".1%"),
        f"{run['peak_bytes'] / 1e6:,.0f}",
        cell(minutes and minutes / 60, ".1f") + ("*" if run.get("shared_machine") else ""),
    ]


def _loss_verdict(verdict: str) -> str:
    return {"higher": "worse", "lower": "better"}.get(verdict, verdict)
