"""The project's targets, against made-up measurements."""

from __future__ import annotations

import pytest

from sqat.bench import attention, end_to_end_table, memory, step_table
from sqat.bench.results import Result, Series, Table
from sqat.bench.targets import Outcome, outcomes


def found(results: list[Result], what: str) -> Outcome:
    (outcome,) = [outcome for outcome in outcomes(results) if what in outcome.target.what]
    return outcome


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    assert {outcome.met for outcome in outcomes([])} == {None}


def test_a_ratio_is_the_median_of_pairs() -> None:
    series = [Series(end_to_end_table.SQAT, [8, 9, 30]), Series(end_to_end_table.RXLM, [2, 2, 3])]
    outcome = found([Result("training", [Table(end_to_end_table.END_TO_END, "", series)])], "`sqat train`")
    assert outcome.measured == (4.5, 4, 10)
    assert outcome.met


def test_the_best_backend_counts_but_not_with_our_settings() -> None:
    series = [
        Series(step_table.OURS, [10]),
        Series("transformers eager", [2]),
        Series("transformers grouped_mm", [5]),
        Series(f"transformers eager, {step_table.TUNED}", [9]),
    ]
    outcome = found([Result("training", [Table(step_table.STEP, "", series)])], "training step")
    assert outcome.measured == (2, 2, 2)
    assert not outcome.met


def test_memory_is_better_when_it_is_less() -> None:
    series = [Series(end_to_end_table.SQAT, [600]), Series(end_to_end_table.RXLM, [1000])]
    table = Table(memory.PEAK, "MB", series, higher_is_better=False)
    outcome = found([Result("memory", [table])], "memory of training, against rxlm")
    assert outcome.measured == pytest.approx([5 / 3] * 3)
    assert outcome.met


def test_attention_is_a_share_of_its_ideal() -> None:
    series = [Series("mha", [8.0]), Series("xsqa", [2.5], {"ideal": 4.0})]
    title = attention.title(attention.BOTH, 4096)
    table = Table(title, "ms", series, higher_is_better=False)
    outcome = found([Result("attention", [table])], "xsqa: share of H/Hq at 4,096")
    assert outcome.measured == pytest.approx([0.8] * 3)
    assert outcome.met is False
    assert outcome.to_dict()["measured"]["median"] == pytest.approx(0.8)


@pytest.mark.parametrize("settings", [{"quick": True}, {"device": "cuda"}, {"model": "ssqat-mm"}])
def test_other_sizes_and_machines_say_nothing_of_the_targets(settings: dict[str, object]) -> None:
    series = [Series(end_to_end_table.SQAT, [9]), Series(end_to_end_table.RXLM, [2])]
    result = Result("training", [Table(end_to_end_table.END_TO_END, "", series)], settings=settings)
    assert {outcome.met for outcome in outcomes([result])} == {None}
