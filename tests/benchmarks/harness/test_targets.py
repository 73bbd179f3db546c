"""The project's targets, against made-up measurements."""

import pytest
from benchmarks.harness.results import Result, Series, Table
from benchmarks.harness.targets import outcomes

from benchmarks.harness import attention, training

RUNS = [Series(training.SQAT, [8.0, 9.0, 30.0]), Series(training.RXLM, [2.0, 2.0, 3.0])]
END_TO_END = Table(training.END_TO_END, "", RUNS)
TUNED = f"transformers eager, {training.TUNED}"  # does not count
STEPS = {training.OURS: 10.0, "transformers eager": 2.0, "transformers grouped_mm": 5.0, TUNED: 9.0}
STEP = Table(training.STEP, "", [Series(name, [value]) for name, value in STEPS.items()])
PEAKS = [Series(training.SQAT, [600.0]), Series(training.RXLM, [1000.0])]
PEAK = Table(training.PEAK, "MB", PEAKS, higher_is_better=False)
VARIANTS = [Series("mha", [8.0]), Series("xsqa", [2.5], {"ideal": 4.0})]
ATTENTION = Table(attention.title(attention.BOTH, 4096), "ms", VARIANTS, higher_is_better=False)


@pytest.mark.parametrize(
    ("benchmark", "table", "target", "measured", "met"),
    [
        ("training", END_TO_END, "`sqat train`", (4.5, 4.0, 10.0), True),
        ("training", STEP, "training step", (2.0, 2.0, 2.0), False),
        ("memory", PEAK, "memory of training, against rxlm", (5 / 3,) * 3, True),
        ("attention", ATTENTION, "xsqa: share of H/Hq at 4,096", (0.8,) * 3, False),
    ],
)
def test_targets_are_ratios_within_rounds(benchmark, table, target, measured, met):
    (outcome,) = [o for o in outcomes([Result(benchmark, [table])]) if target in o.target.what]
    assert outcome.measured == pytest.approx(measured)
    assert outcome.met is met
    assert outcome.to_dict()["measured"]["median"] == pytest.approx(measured[0])


@pytest.mark.parametrize("settings", [{"quick": True}, {"device": "cuda"}, {"model": "ssqat-mm"}])
def test_other_sizes_and_devices_leave_targets_unmeasured(settings):
    result = Result("training", [END_TO_END], settings=settings)
    assert {outcome.met for outcome in outcomes([result])} == {None}
