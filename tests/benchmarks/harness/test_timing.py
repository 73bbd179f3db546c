"""Who runs when, what counts, and what becomes of candidates that fail."""

import time
from unittest.mock import Mock

from benchmarks.harness.results import NotMeasured, Table
from benchmarks.harness.timing import OUT_OF_TIME, Sample, alternate


class Script:
    """Candidates that give the values they are told, and a record of who ran."""

    def __init__(self):
        self.ran = []

    def candidate(self, name, *values):
        left = iter(values)

        def run():
            self.ran.append(name)
            return Sample(next(left), {"seconds": float(len(self.ran)), "twice": 0.0})

        return run


def test_candidates_alternate_and_the_warm_up_does_not_count():
    script = Script()
    candidates = {"a": script.candidate("a", 99, 2, 4, 6), "b": script.candidate("b", 98, 1, 1, 2)}
    table = alternate(Table("t", "s"), candidates, rounds=3)
    assert script.ran == ["a", "b"] * 4
    assert {series.name: series.values for series in table.series} == {"a": [2, 4, 6], "b": [1, 1, 2]}


def test_figures_are_medians_and_the_first_call_stands_apart_or_counts_without_a_warm_up():
    table = alternate(Table("t", "s"), {"a": Script().candidate("a", 1, 2, 3, 4)}, rounds=3)
    assert table.series[0].figures == {"first call, s": 1.0, "seconds": 3.0, "twice": 0.0}
    table = alternate(Table("t", "s"), {"a": Script().candidate("a", 5, 7)}, rounds=2, warmup=False)
    assert table.series[0].values == [5, 7]


def test_a_failing_candidate_is_named_and_the_others_go_on():
    script = Script()
    fails = Mock(side_effect=KeyError("no such backend\nand more"))
    declines = Mock(side_effect=NotMeasured("it would take 38 GiB"))
    candidates = {"a": script.candidate("a", 1, 2), "b": fails, "c": declines, "d": script.candidate("d", 3, 4)}
    table = alternate(Table("t", "s"), candidates, rounds=1)
    assert [series.name for series in table.series] == ["a", "d"]
    assert table.failed == {"b": "KeyError: 'no such backend\\nand more'"}
    assert table.skipped == {"c": "it would take 38 GiB"}


def test_nothing_is_begun_after_the_deadline_and_the_rounds_there_were_are_kept():
    script = Script()
    table = alternate(Table("t", "s"), {"a": script.candidate("a", 1)}, rounds=1, deadline=time.monotonic() - 1)
    assert (script.ran, table.series, table.skipped) == ([], [], {"a": OUT_OF_TIME})
    end = time.monotonic() + 0.05

    def slow():
        time.sleep(0.06)
        return Sample(2.0)

    candidates = {"a": script.candidate("a", 1, 1, 1), "b": slow}
    table = alternate(Table("t", "s", baseline="b"), candidates, rounds=3, warmup=False, deadline=end)
    assert [series.values for series in table.series] == [[1], [2.0]]
