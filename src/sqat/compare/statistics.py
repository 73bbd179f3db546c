"""What can be said of variants from a few seeds: means, intervals, paired differences.

Student's t for figures over seeds; ranks and medians for times, whose outliers (a machine that did something else for
a moment) would drown everything. Differences to the reference are taken seed by seed: for one seed both models saw the
same data in the same order and began equal where they could, so what the seed does to both cancels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
Values = Mapping[str, Mapping[int, float]]  # a figure by variant, and by seed (or round)


class Summary(NamedTuple):
    """Over seeds. `half` is half the width of the mean's 95 % interval; infinite for a single seed."""

    mean: float
    deviation: float
    half: float
    number: int


class Difference(NamedTuple):
    """Variant minus reference, seed by seed."""

    summary: Summary
    p: float  # that a difference at least this large comes about by chance
    adjusted_p: float  # after Holm, over all variants compared at once

    @property
    def verdict(self) -> str:
        """In words, without saying which direction is good."""
        if self.summary.number < 2:
            return "one seed: nothing can be said"
        if self.adjusted_p < 1 - CONFIDENCE:
            return "higher" if self.summary.mean > 0 else "lower"
        return f"cannot be told apart (n = {self.summary.number})"


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation (of a sample) and the mean's interval."""
    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return Summary(mean, math.nan, math.inf, number)
    deviation = statistics.stdev(values)
    return Summary(mean, deviation, _quantile(number - 1) * deviation / number**0.5, number)


def differences(by_variant: Values, reference: str) -> dict[str, Difference]:
    """Of every other variant to the reference, over the seeds that both have.

    Args:
        by_variant: a figure by variant and seed.
    """
    found: dict[str, tuple[Summary, float]] = {}
    base = by_variant.get(reference, {})
    for name, values in by_variant.items():
        shared = [seed for seed in values if seed in base]
        if name == reference or not shared:
            continue
        summary = summarise([values[seed] - base[seed] for seed in shared])
        found[name] = summary, _p_value(summary)
    adjusted = holm([p for _, p in found.values()])
    return {
        name: Difference(summary, p, better)
        for (name, (summary, p)), better in zip(found.items(), adjusted, strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the chance of even one false finding among all stays what it is for one."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median that needs no assumption: two of the values (binomial order statistics); the
    smallest and the largest where six are not there, and the confidence is less.
    """
    from scipy import stats

    ranked = sorted(values)
    outside = max(0, int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ranked), 0.5)) - 1)
    return ranked[outside], ranked[-1 - outside]


class Ordering(NamedTuple):
    """What becomes of a claim "lower < higher", or "about equal"."""

    verdict: str  # "holds", "does not hold …", "cannot be told", "not measured"
    gap: float  # higher minus lower, mean or median; NaN where nothing is shared
    p: float  # that a gap at least this large comes about by chance


def ordering(by_variant: Values, lower: str, higher: str, *, equal: bool = False, by_ranks: bool = False) -> Ordering:
    """Whether a claim "lower < higher" (or "about equal") holds.

    Args:
        by_variant: a figure by variant and seed.
        equal: the claim is that the two are about equal.
        by_ranks: medians and Wilcoxon's signed ranks instead of means and Student's t: for figures with outliers.
    """
    if lower not in by_variant or higher not in by_variant:
        return Ordering("not measured", math.nan, 1.0)
    low, high = by_variant[lower], by_variant[higher]
    gaps = [high[seed] - low[seed] for seed in high if seed in low]
    if len(gaps) < 2:
        return Ordering("cannot be told", gaps[0] if gaps else math.nan, 1.0)
    gap = statistics.median(gaps) if by_ranks else statistics.fmean(gaps)
    p = _p_by_ranks(gaps) if by_ranks else _p_value(summarise(gaps))
    told_apart = p < 1 - CONFIDENCE
    if equal:
        verdict = "does not hold" if told_apart else "holds, as far as can be told"
    elif told_apart:
        verdict = "holds" if gap > 0 else "does not hold: the other way round"
    else:
        verdict = "cannot be told"
    return Ordering(verdict, gap, p)


def _p_value(summary: Summary) -> float:
    from scipy import stats

    if summary.number < 2:
        return 1.0
    if summary.deviation == 0:
        return 0.0 if summary.mean else 1.0
    t = abs(summary.mean) / (summary.deviation / summary.number**0.5)
    return float(2 * stats.t.sf(t, summary.number - 1))


def _p_by_ranks(gaps: Sequence[float]) -> float:
    from scipy import stats

    return float(stats.wilcoxon(gaps).pvalue) if any(gaps) else 1.0


def _quantile(degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))
