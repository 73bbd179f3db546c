"""Ratios, spreads, and results that come back from JSON as they were."""

from __future__ import annotations

import json

import pytest

from sqat.bench.results import Result, Series, Spread, Table


@pytest.fixture
def table() -> Table:
    series = [Series("ours", [10.0, 30.0, 20.0], {"peak MB": 7.0}), Series("theirs", [5.0, 3.0, 10.0])]
    return Table("steps", "tokens/s", series, baseline="theirs", failed={"x": "broke"}, notes=["quiet machine"])


def test_ratios_are_taken_within_a_round(table: Table) -> None:
    assert table.ratios("ours", "theirs") == [2.0, 10.0, 2.0]
    assert Spread.of([2.0, 10.0, 2.0]) == (2.0, 2.0, 10.0)


def test_more_is_worse_for_seconds(table: Table) -> None:
    table.higher_is_better = False
    assert table.ratios("ours", "theirs") == [0.5, 0.1, 0.5]


def test_rounds_that_one_lacks_do_not_count(table: Table) -> None:
    table.series[1].values.pop()
    assert table.ratios("ours", "theirs") == [2.0, 10.0]


def test_no_ratio_without_both(table: Table) -> None:
    assert table.ratios("ours", "x") is None


def test_json_and_back(table: Table) -> None:
    result = Result("training", [table], {"rxlm": "pip install it"}, {"rounds": 3}, {"cores": 2}, 1.5)
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    assert again.failures == ["steps: x: broke"]


def test_a_benchmark_that_broke_is_a_failure() -> None:
    assert Result("memory", error="OSError: full").failures == ["memory: OSError: full"]
