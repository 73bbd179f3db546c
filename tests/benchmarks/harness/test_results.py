"""Ratios, spreads, reports for people, and results that survive JSON."""

import json

import pytest
from benchmarks.harness.against import _merged
from benchmarks.harness.results import Result, Series, Spread, Table
from benchmarks.harness.targets import outcomes
from rich.console import Console

from benchmarks.harness import report
from sqat.bench import environment


@pytest.fixture
def table():
    series = [Series("ours", [10.0, 30.0, 20.0], {"peak MB": 7.0}), Series("theirs", [5.0, 3.0, 10.0])]
    return Table(
        "steps", "tokens/s", series, baseline="theirs", failed={"x": "ValueError: no"}, skipped={"c": "38 GiB"}
    )


@pytest.fixture
def result(table):
    return Result("training", [table], {"rxlm": "make bench-setup"}, {"rounds": 3}, environment(), 1.5)


def test_ratios_are_taken_within_a_round(table):
    assert table.ratios("ours", "theirs") == [2.0, 10.0, 2.0]
    assert Spread.of([2.0, 10.0, 2.0]) == (2.0, 2.0, 10.0)
    table.higher_is_better = False
    assert table.ratios("ours", "theirs") == [0.5, 0.1, 0.5]
    table.series[1].values.pop()
    assert table.ratios("ours", "theirs") == [0.5, 0.1]
    assert table.ratios("ours", "x") is None


def test_results_survive_json_and_list_failures(result):
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    assert again.failures == ["steps: x: ValueError: no"]
    assert Result("memory", error="OSError: full").failures == ["memory: OSError: full"]


def test_reports_for_people(result, tmp_path, capsys):
    report.print_result(Console(width=120), result)
    report.print_targets(Console(width=120), outcomes([]))
    out = capsys.readouterr().out
    for part in ("2×", "not measured: c: 38 GiB", "failed: x: ValueError: no", "absent: rxlm: make bench-setup"):
        assert part in out
    report.write_result(tmp_path / "new", result)
    report.write_summary(tmp_path / "new", [result], outcomes([result]), "make bench")
    assert Result.from_dict(json.loads((tmp_path / "new" / "training.json").read_text())) == result
    assert [report.number(x) for x in (12345.6, 99.96, 0.012345, 0)] == ["12,346", "100", "0.0123", "0"]
    page = (tmp_path / "new" / "summary.md").read_text()
    assert "`make bench`" in page
    assert "| ours | 20 [10 … 30] | 2× [2 … 10, noisy] | 7 |" in page
    assert len(json.loads((tmp_path / "new" / "targets.json").read_text())) == len(outcomes([]))


@pytest.mark.parametrize(("higher", "expected"), [(True, (0.5, 0.5, 2.0)), (False, (2.0, 0.5, 2.0))])
def test_checkouts_are_compared_pair_by_pair(higher, expected):
    def round_(value):
        return Result("t", [Table("steps", "s", [Series("sqat", [value])], higher_is_better=higher)])

    pairs = [(round_(ours), round_(theirs)) for ours, theirs in ((2.0, 4.0), (3.0, 6.0), (8.0, 4.0))]
    (series,) = _merged("steps", pairs).series
    assert series.values == [2.0, 3.0, 8.0]
    assert series.figures["other"] == 4.0
    assert (series.figures["times better"], series.figures["least"], series.figures["most"]) == expected
