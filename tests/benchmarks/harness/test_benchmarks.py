"""Every benchmark at quick sizes: the tables are there, with plausible numbers."""

import json
import sys

import pytest
from benchmarks.harness.attention import measure_attention
from benchmarks.harness.child import run_child
from benchmarks.harness.long import PAPER, measure_long
from benchmarks.harness.results import BenchError, Result
from benchmarks.harness.settings import Context

from benchmarks.harness import __main__ as harness
from benchmarks.harness import generation, peers, tasks, training
from sqat.variants import VARIANTS


def check(result, rounds=2):
    assert result.failures == []
    for table in result.tables:
        assert table.series
        for series in table.series:
            assert all(value > 0 for value in series.values), (table.title, series.name)
            assert len(series.values) <= rounds


def test_attention_counts_operations_by_query_heads(context):
    result = measure_attention(context(rounds=1))
    check(result)
    forward = result.tables[0]
    assert {series.name for series in forward.series} == {*VARIANTS, "sw-sqa"}
    for series in forward.series:
        assert set(series.figures) == {"GFLOP/s", "share of ceiling", "ideal", "share of ideal"}
        operations = series.figures["GFLOP/s"] * 1e9 * series.values[0] / 1e3  # the value is in milliseconds
        assert operations == pytest.approx(4 * 3 * (16 / series.figures["ideal"]) * 16 * 17 * 18 / 2)


def test_long_at_the_lengths_asked_for(context):
    """And the paper's text has SQA over MHA at 200,000 tokens at about 2."""
    result = measure_long(context(rounds=1, lengths=(19,)))
    check(result)
    titles = {table.title for table in result.tables}
    assert titles == {f"whole model, {what}, 19 × 3" for what in ("forward", "forward+backward")}
    xsqa, sqa, *_, mha = PAPER[200_000, 1]
    assert mha / sqa == pytest.approx(2.04, abs=0.01)
    assert mha / xsqa == pytest.approx(3.51, abs=0.01)


def test_generation_beside_transformers(context, monkeypatch):
    monkeypatch.setattr(Context, "has", lambda self, peer: peer == "transformers")
    result = generation.measure_generation(context(rounds=1))
    check(result)
    assert all(table.find(generation.TRANSFORMERS) for table in result.tables)
    assert result.tables[0].ratios(generation.GREEDY, generation.TRANSFORMERS)


def test_training_steps(context, monkeypatch):
    """In this process, with the function that a child would call."""
    monkeypatch.setattr(training, "run_child", lambda task, settings, **_: tasks.timed_steps(settings))
    monkeypatch.setattr(Context, "has", lambda self, peer: False)
    table = training.step_table(context(rounds=1, peers=True))
    check(Result("training", [table]))
    names = [training.OURS, training.PACKED, training.PADDED, training.FLOAT32, training.NAIVE]
    assert [series.name for series in table.series] == names
    assert table.series[2].figures["real tokens/s"] <= table.series[2].spread.median


def test_training_end_to_end(context, monkeypatch):
    """In this process, too."""
    run = lambda task, settings, **_: getattr(tasks, task.removeprefix("tasks:"))(settings)  # noqa: E731
    monkeypatch.setattr(training, "run_child", run)
    table = training.end_to_end_table(context(rounds=1))
    check(Result("training", [table]))
    assert [series.name for series in table.series] == [training.SQAT, training.OUR_SNIPPET]
    assert 0 <= table.series[0].figures["data wait"] < 1
    training.add_card_minutes(table, "sqat-mm")
    assert "387 minutes" in table.notes[-1]
    assert table.series[0].figures["minutes for 2.3 B"] == pytest.approx(2.3e9 / 60 / table.series[0].spread.median)


@pytest.mark.skipif(peers.missing("rxlm") is not None, reason=str(peers.missing("rxlm")))
@pytest.mark.slow
def test_the_cards_snippet_on_rxlm(context):
    answer = run_child("tasks:card_snippet", training.snippet_task(context(rounds=1), "rxlm", training.QUICK_STEPS))
    assert 0 < answer["tokens"] <= 2 * 3 * 31  # two steps of three rows, whose first token is not a target
    assert answer["seconds"] > 0
    assert 0 < answer["data_wait"] < 1
    assert answer["peak_bytes"] > 100e6  # Python and torch alone take more


def test_a_failing_child_or_too_little_data_is_an_error(context):
    with pytest.raises(BenchError, match="tasks:timed_steps ended with code 1: KeyError: 'device'"):
        run_child("tasks:timed_steps", {})
    with pytest.raises(BenchError, match="stories:2 is too small: it does not fill 3 rows of 32 tokens"):
        context(data="stories:2").workload.batch("rows")


def test_all_goes_on_after_a_failure(monkeypatch, capsys, tmp_path):
    def stub(name, context):
        return Result(name, error="OSError: the disk is full" if name == "memory" else None)

    monkeypatch.setattr(harness, "_run", stub)
    monkeypatch.setattr(sys, "argv", ["harness", "all", "--quick", "--out", str(tmp_path / "results")])
    with pytest.raises(SystemExit, match="failed: memory: OSError: the disk is full"):
        harness.main()
    out = capsys.readouterr().out
    assert "long (" in out
    assert out.count("not measured") > 5
    saved = json.loads((tmp_path / "results" / "long.json").read_text())
    assert saved["settings"]["rounds"] == 3
    assert (tmp_path / "results" / "summary.md").is_file()
