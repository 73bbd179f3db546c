"""What a few seeds can tell about variants: means, intervals, paired differences.

Student's t for metrics over seeds; ranks and medians for times, whose outliers (a machine that did something else for
a moment) would drown everything. Differences to the reference are taken seed by seed: with one seed, both models saw
the same data in the same order and began equal where they could, so what the seed does to both cancels.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
Values = Mapping[str, Mapping[int, float]]  # a metric by variant, and by seed (or round)


class Summary(NamedTuple):
    """A metric over seeds. `half` is half the width of the mean's 95 % interval; infinite for a single seed."""

    mean: float
    deviation: float
    half: float
    number: int
    p: float  # the probability of a mean at least this far from 0 if the true one is 0 (Student's t, two-sided)


class Difference(NamedTuple):
    """A variant minus the reference, seed by seed."""

    summary: Summary
    adjusted_p: float  # after Holm, over all variants compared at once

    @property
    def told_apart(self) -> bool:
        """Whether the difference is significant."""
        return self.summary.number > 1 and self.adjusted_p < 1 - CONFIDENCE

    @property
    def verdict(self) -> str:
        """The result in words, of a metric that is better when it is lower."""
        if self.summary.number < 2:
            return "one seed: nothing can be said"
        if self.told_apart:
            return "worse" if self.summary.mean > 0 else "better"
        return f"cannot be told apart (n = {self.summary.number})"


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation (of a sample), and the mean's 95 % interval by Student's t."""
    from scipy import stats

    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return Summary(mean, math.nan, math.inf, number, 1.0)
    deviation, t = statistics.stdev(values), stats.t(number - 1)
    error = deviation / number**0.5
    p = float(2 * t.sf(abs(mean) / error)) if error else float(mean == 0)
    return Summary(mean, deviation, float(t.ppf((1 + CONFIDENCE) / 2)) * error, number, p)


def differences(by_variant: Values, reference: str) -> dict[str, Difference]:
    """Compare every other variant with the reference, over the seeds that both have; p is corrected after Holm."""
    found: dict[str, Summary] = {}
    base = by_variant.get(reference, {})
    for name, values in by_variant.items():
        shared = [seed for seed in values if seed in base]
        if name != reference and shared:
            found[name] = summarise([values[seed] - base[seed] for seed in shared])
    adjusted = holm([summary.p for summary in found.values()])
    return {name: Difference(s, p) for (name, s), p in zip(found.items(), adjusted, strict=True)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the chance of even one false finding among all stays what it is for one."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median that needs no assumption: two of the values (binomial order statistics). With
    fewer than six values it is their range, and the confidence is less.
    """
    from scipy import stats

    ranked = sorted(values)
    outside = max(0, int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ranked), 0.5)) - 1)
    return ranked[outside], ranked[-1 - outside]
