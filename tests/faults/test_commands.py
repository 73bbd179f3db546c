"""`sqat compare`, stopped and killed, comes to the same results."""

import signal

import pytest
from harness import KILLED, assert_same_run, litter, log_of

pytestmark = pytest.mark.usefixtures("needs_shim")

COMPARE = ("sqat.compare.run", "sqat.compare.runner", "sqat.compare.report", "matplotlib.pyplot", "scipy.stats")
UNDRAWN = """
import collections, sqat.compare.report as module
module.draw_all = lambda _: collections.defaultdict(lambda: ("a picture", "<svg", b""))
"""

PLAN = """
name: tiny
family: extra_small
model: {vocab_size: 307, hidden_size: 32, head_dim: 4, num_layers: 1, intermediate_size: 13, context_length: 31}
variants: [gqa, sqa]
reference: gqa
data: {source: "stories:53", validation_limit: 3}
train: {batch_size: 3, max_steps: 6, evaluate_every: 5, checkpoint_every: 2, log_every: 1, tensorboard: false,
        precision: float32, device: cpu}
seeds: [0]
processes: 2
probes: 3
stories: 0
timing: {rounds: 1, steps: 1, warmup: 1, prompt_tokens: 7, new_tokens: 3, lengths: [5]}
"""


def content(folder):
    """Of all files but hidden ones, by their path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def succeeded(ended):
    assert ended.code == 0, ended.output
    return ended


@pytest.fixture
def start(commands):
    """`start("name")`: as `commands`, with the plan of a comparison."""

    def make(name):
        sqat = commands(name)
        (sqat.folder / "plan.yaml").write_text(PLAN)
        return sqat

    return make


def results(out):
    """Without what depends on the machine."""
    of_the_machine = ("seconds", "tokens_per_second", "peak_bytes", "environment")
    return log_of(out, "results.jsonl", of_the_machine)


def test_compare(start):
    """The comparison is asked to stop, then killed, and its runs end by themselves; the next start waits for them."""
    command = ("compare", "plan.yaml", "--out", "out")
    whole = start("whole")
    changes = succeeded(whole(*command, modules=COMPARE, before=UNDRAWN)).changes
    begun = next(i + 1 for i, change in enumerate(changes) if "sqa-seed0/output.log" in change)  # and so the other, too
    sqat = start("stopped")
    stopped = sqat(*command, action="signal", at=begun, value=signal.SIGTERM)
    assert (stopped.code, "the same command goes on" in stopped.output) == (143, True)
    assert sqat(*command, action="kill", at=4).code == KILLED
    succeeded(sqat(*command, before=UNDRAWN))
    assert results(sqat.folder / "out") == results(whole.folder / "out")
    assert {*content(sqat.folder / "out")} == {*content(whole.folder / "out")}
    for run in (whole.folder / "out" / "runs").iterdir():
        assert_same_run(sqat.folder / "out" / "runs" / run.name, run)
    assert litter(sqat.folder) == []
