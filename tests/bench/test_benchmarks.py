"""Every benchmark at quick sizes: the tables are there, with numbers of the right kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sqat.bench import attention, end_to_end_table, generation, peers, step_table
from sqat.bench.attention import measure_attention
from sqat.bench.ceiling import measure_ceiling
from sqat.bench.child import run_child
from sqat.bench.environment import environment
from sqat.bench.generation import measure_generation
from sqat.bench.long import PAPER, measure_long
from sqat.bench.results import BenchError, Result, Table
from sqat.bench.settings import Context
from sqat.bench.workload import load_batch, save_batch
from sqat.checkpoint.rxnn import config_to_rxnn
from sqat.data.batches import Batch
from sqat.variants import VARIANTS

Make = Callable[..., Context]


@pytest.fixture
def _no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)


def check(result: Result, rounds: int = 2) -> None:
    assert result.failures == []
    for table in result.tables:
        assert table.series
        for series in table.series:
            assert all(value > 0 for value in series.values), (table.title, series.name)
            assert len(series.values) <= rounds


def test_attention(context: Make) -> None:
    result = measure_attention(context())
    check(result)
    core = [table for table in result.tables if table.title.startswith("attention, ")]
    assert len(core) == 4
    assert {series.name for series in core[0].series} == {*VARIANTS, "sw-sqa"}
    sqa = core[1].find("sqa")
    assert sqa is not None
    assert sqa.figures["ideal"] == 2
    assert set(sqa.figures) == {"GFLOP/s", "share of ceiling", "ideal", "share of ideal"}


def test_attention_counts_operations_by_query_heads(context: Make) -> None:
    for series in measure_attention(context(rounds=1)).tables[0].series:
        operations = series.figures["GFLOP/s"] * 1e9 * series.values[0] / 1e3  # the value is in milliseconds
        assert operations == pytest.approx(4 * 3 * (16 / series.figures["ideal"]) * 16 * 17 * 18 / 2)


def test_long(context: Make) -> None:
    result = measure_long(context(rounds=1))
    check(result)
    assert len(result.tables) == 4


def test_lengths_that_are_asked_for(context: Make) -> None:
    chosen = context(rounds=1, lengths=(19,))
    assert [table.title for table in measure_long(chosen).tables] == [
        "whole model, forward, 19 × 3",
        "whole model, forward+backward, 19 × 3",
    ]
    titles = [table.title for table in measure_attention(chosen).tables]
    assert titles[:2] == ["attention, forward, 19 tokens", "attention, forward+backward, 19 tokens"]


def test_the_papers_figures() -> None:
    """SQA's speed-up over MHA at 200,000 tokens, as the paper's text has it: about 2."""
    xsqa, sqa, *_, mha = PAPER[200_000, 1]
    assert mha / sqa == pytest.approx(2.04, abs=0.01)
    assert mha / xsqa == pytest.approx(3.51, abs=0.01)


@pytest.mark.usefixtures("_no_peers")
def test_generation_without_peers(context: Make) -> None:
    result = measure_generation(context())
    check(result)
    assert [s.name for s in result.tables[0].series] == [generation.GREEDY, generation.SAMPLED]
    assert list(result.absent) == ["transformers", "rxlm"]


def test_generation_beside_transformers(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "missing", lambda peer: None if peer == "transformers" else "hidden")
    result = measure_generation(context(rounds=1))
    check(result)
    assert all(table.find(generation.TRANSFORMERS) for table in result.tables)
    assert result.tables[0].ratios(generation.GREEDY, generation.TRANSFORMERS)


@pytest.mark.usefixtures("_no_peers")
def test_training_steps(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what a child would do is the same function."""
    monkeypatch.setattr(step_table, "run_child", lambda task, settings, **_: step_table_in_process(settings))
    table = step_table.step_table(context(rounds=1))
    check(Result("training", [table]))
    names = [series.name for series in table.series]
    assert names == [step_table.OURS, step_table.PACKED, step_table.PADDED, "sqat float32", step_table.NAIVE]
    padded = table.find(step_table.PADDED)
    assert padded is not None
    assert padded.figures["real tokens/s"] <= padded.spread.median


def step_table_in_process(settings: dict[str, object]) -> dict[str, object]:
    from sqat.bench.steps import timed_steps

    return timed_steps(settings)


@pytest.mark.usefixtures("_no_peers")
def test_training_end_to_end_and_its_memory(context: Make) -> None:
    """In child processes, as a user starts them."""
    made = context(rounds=1)
    table = end_to_end_table.end_to_end_table(made)
    check(Result("training", [table]))
    assert [series.name for series in table.series] == [end_to_end_table.SQAT, end_to_end_table.OUR_SNIPPET]
    assert 0 <= table.series[0].figures["data wait"] < 1
    end_to_end_table.add_card_minutes(table, "sqat-mm")
    assert "387 minutes" in table.notes[-1]
    assert table.series[0].figures["minutes for 2.3 B"] == pytest.approx(2.3e9 / 60 / table.series[0].spread.median)


@pytest.mark.skipif(peers.missing("rxlm") is not None, reason=str(peers.missing("rxlm")))
def test_the_cards_snippet_on_rxlm(context: Make) -> None:
    made = context(rounds=1)
    arguments = config_to_rxnn(made.settings.config)
    task = end_to_end_table.snippet_task(made, "rxlm", arguments, {"warmup": 1, "steps": 3})
    answer = run_child("card-snippet", task)
    assert 0 < answer["tokens"] <= 2 * 3 * 31  # two steps of three rows, whose first token is nobody's target
    assert answer["seconds"] > 0
    assert 0 < answer["data_wait"] < 1
    assert answer["peak_bytes"] > 100e6  # Python and torch alone take more


def test_models_that_the_cards_framework_cannot_hold(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        end_to_end_table, "run_child", lambda *_, **__: {"seconds": 1, "tokens": 7, "data_wait": 0, "peak_bytes": 1}
    )
    table = end_to_end_table.end_to_end_table(context(model="sqat-xs", rounds=1))
    assert "tie_embeddings is True" in table.skipped[end_to_end_table.RXLM]
    assert table.series[0].values == [7]


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(BenchError, match="steps ended with code 1: KeyError: 'device'"):
        run_child("steps", {})


def test_ceiling(context: Make) -> None:
    ceiling = measure_ceiling(context().settings)
    assert ceiling.float32 > 0
    assert ceiling.bf16 > 0


def test_environment() -> None:
    found = environment()
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert {"cpu", "gpu", "memory_bytes", "revision", "date", "variables"} <= set(found)


def test_too_little_data_is_said(context: Make) -> None:
    made = context(data="stories:2")
    with pytest.raises(BenchError, match="stories:2 is too small: it does not fill 3 rows of 32 tokens"):
        made.workload.batch(made.settings, "rows")


def test_titles_by_which_targets_are_found(context: Make) -> None:
    result = measure_attention(context(rounds=1))
    assert isinstance(result.table(attention.title(attention.BOTH, 31)), Table)


@pytest.mark.parametrize("documents", [True, False])
def test_a_batch_reaches_a_child_whole(tmp_path: Path, documents: bool) -> None:
    tokens = torch.arange(21).view(3, 7)
    positions = (tokens % 5, tokens % 2) if documents else (None, None)
    batch = Batch(tokens, tokens.roll(-1), *positions, counted=17)
    found = load_batch(save_batch(batch, tmp_path / "batch.safetensors"), "cpu")
    assert found.counted == 17
    for name in ("inputs", "targets", "positions", "documents"):
        expected, part = getattr(batch, name), getattr(found, name)
        assert (part is None) if expected is None else torch.equal(part, expected)
