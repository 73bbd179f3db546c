"""`sqat bench` as a user meets it."""

import json

import pytest

from sqat.cli.bench import _cell


@pytest.fixture
def bench(monkeypatch, sqat):
    def measured(models, progress, **settings):
        progress("sqat-mm: round 1 of 2")
        rates = {
            name: {what: [10.0 * i, 30.0 * i] for what in ("training", "evaluation", "prompt", "decoding")}
            for i, name in enumerate(models, start=1)
        }
        return {"models": rates, "settings": settings}

    monkeypatch.setattr("sqat.bench.bench", measured)
    return lambda *arguments: sqat("bench", *arguments)


def test_table_has_medians_and_ratios_to_the_first_model(bench):
    code, out, err = bench("sqat-mm", "gqa-ref-micro")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "sqat-mm: round 1 of 2\n")  # without a terminal
    assert lines[1] == ["sqat-mm", *["20"] * 4]
    assert lines[2] == ["gqa-ref-micro", *["40", "(2.00×)"] * 4]


@pytest.mark.parametrize(("rates", "shown"), [([10.0, 14.0], "12 (1.20×)"), ([10.0, 16.0], "13 (1.30×, noisy)")])
def test_ratios_whose_rounds_differ_by_half_are_called_noisy(rates, shown):
    assert _cell(rates, [10.0, 10.0], compare=True) == shown


def test_json_is_all_that_is_printed(bench):
    code, out, _ = bench("--json", "--batch-size", "3", "--rounds", "2")
    found = json.loads(out)
    assert (code, list(found["models"])) == (0, ["sqat-mm"])
    assert (found["settings"]["batch_size"], found["settings"]["rounds"]) == (3, 2)
