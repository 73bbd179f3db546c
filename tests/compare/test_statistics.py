"""Intervals, paired differences and verdicts."""

import math
import random

import pytest
from scipy import stats

from sqat.compare.statistics import differences, holm, median_interval, summarise


def test_interval_is_students():
    values = [1.0, 2.0, 4.0, 7.0]
    low, high = stats.t.interval(0.95, 3, loc=3.5, scale=stats.sem(values))
    found = summarise(values)
    assert found.mean == 3.5
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_intervals_cover_as_often_as_they_say():
    draw = random.Random(3)
    covered = 0
    for _ in range(2000):
        found = summarise([draw.gauss(5, 2) for _ in range(3)])
        covered += abs(found.mean - 5) <= found.half
    assert 0.935 < covered / 2000 < 0.965


def test_differences_are_paired():
    noise = {0: 10.0, 1: -20.0, 2: 5.0}
    a = dict(noise)
    b = {seed: value + 1 + 0.01 * seed for seed, value in noise.items()}
    found = differences({"a": a, "b": b}, "a")["b"]
    assert found.summary.mean == pytest.approx(1.01)
    assert found.summary.p == pytest.approx(stats.ttest_rel(list(b.values()), list(a.values())).pvalue)
    assert found.verdict == "worse"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({1: 2.5, 7: 9.0}, "one seed: nothing can be said"),  # what seeds do not share is left out
        ({0: 2.0, 1: 1.5, 2: 3.2}, "cannot be told apart (n = 3)"),
    ],
)
def test_too_few_to_tell(values, verdict):
    assert differences({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": values}, "a")["b"].verdict == verdict


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [(2, (0, 1)), (5, (0, 4)), (6, (0, 5)), (11, (1, 9)), (21, (5, 15)), (25, (7, 17))],  # a textbook's table
)
def test_the_medians_interval(number, expected):
    assert median_interval([float(i) for i in reversed(range(number))]) == expected


def test_the_medians_interval_holds_it_as_often_as_said():
    draw = random.Random(0)
    found = [median_interval([draw.expovariate(1) for _ in range(13)]) for _ in range(2000)]
    assert 0.95 <= sum(low <= math.log(2) <= high for low, high in found) / 2000 <= 0.99
