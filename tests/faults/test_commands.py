"""Killed at any change to the disk, or a disk that is full: `sqat tokenizer train`, `convert`, `uptrain`, `compare`."""

import errno
import random
import re
import shutil
import signal

import pytest
from harness import FREEING, FULL, KILLED, assert_refused, assert_same_run, litter, log_of

pytestmark = pytest.mark.usefixtures("needs_shim")

CONVERT = ("sqat.convert", "sqat.convert.uptrain", "transformers.models.llama.modeling_llama")
COMPARE = ("sqat.compare.run", "sqat.compare.runner", "sqat.compare.report", "matplotlib.pyplot", "scipy.stats")
PARTS = 4 if FULL else 1
UNDRAWN = """
import collections, sqat.compare.report as module
module.draw_all = lambda _: collections.defaultdict(lambda: ("a picture", b"<svg", b""))
"""

PLAN = """
name: tiny
family: extra_small
model: {vocab_size: 307, hidden_size: 32, head_dim: 4, num_layers: 1, intermediate_size: 13, context_length: 31}
variants: [gqa, sqa]
reference: gqa
data: {source: "stories:53", validation_limit: 3}
train: {batch_size: 3, max_steps: 6, evaluate_every: 5, checkpoint_every: 2, log_every: 3, tensorboard: false,
        precision: float32, device: cpu}
seeds: [0]
processes: 2
probes: 3
stories: 0
timing: {rounds: 1, steps: 1, warmup: 1, prompt_tokens: 7, new_tokens: 3, lengths: [5]}
"""


def numbers(changes, most, short, part=None):
    """At which changes to kill: `most` of them, or few; or a part of these."""
    everywhere, count = range(1, len(changes) + 1), most if FULL else short
    chosen = everywhere if count >= len(changes) else sorted(random.Random(3).sample(everywhere, count))
    chosen = list(chosen)
    return chosen if part is None else chosen[part::PARTS]


def content(folder):
    """Of all files but hidden ones, by their path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def succeeded(ended):
    assert ended.code == 0, ended.output
    return ended


def test_tokenizer(commands):
    command = ("tokenizer", "train", "stories:31", "--out", "out", "--vocab-size", "301")
    whole = commands("whole")
    changes = succeeded(whole(*command)).changes
    expected = content(whole.folder / "out")
    assert {*expected} == {"tokenizer.json", "tokenizer_config.json", "checksums.sha256"}

    def goes_on(sqat):
        assert content(sqat.folder / "out").items() <= expected.items()  # each is whole or absent
        succeeded(sqat(*command))
        assert content(sqat.folder / "out") == expected
        assert litter(sqat.folder) == []

    kill_and_fill(commands, command, changes, "tokenizer.json", goes_on)


def kill_and_fill(commands, command, changes, name, goes_on):
    """Killed; and with a disk that is full from the first write of a file on, in the full form from any change on."""
    for n in numbers(changes, 99, 1):
        sqat = commands(f"at-{n}")
        assert sqat(*command, action="kill", at=n).code == KILLED
        goes_on(sqat)
    wanting = [i + 1 for i, change in enumerate(changes) if not change.startswith(FREEING)]
    first = next(n for n in wanting if changes[n - 1].startswith("write") and name in changes[n - 1])
    for n in wanting if FULL else [first]:
        sqat = commands(f"full-at-{n}")
        ended = sqat(*command, action="fail", at=n, value=errno.ENOSPC)
        assert_refused(ended, "No space left on device; free some space there")
        assert re.search(r"error: (\S*/)?out(/\S+)? cannot be written", ended.output)  # the folder, or a file in it
        assert litter(sqat.folder) == []
        goes_on(sqat)


def kill_conversion(commands, command, modules):
    whole = commands("whole-conversion")
    changes = succeeded(whole(*command, modules=modules)).changes
    expected = content(whole.folder / "out")
    assert {"config.json", "model.safetensors"} <= {*expected}

    def goes_on(sqat):
        if (sqat.folder / "out").exists():  # whole; what was stopped or refused came after its renaming
            assert content(sqat.folder / "out") == expected
            again = sqat(*command)  # it is done, and not done twice
            assert again.code == 1
            assert "--out is out, which" in again.output
        else:
            succeeded(sqat(*command))
        assert content(sqat.folder / "out") == expected
        assert litter(sqat.folder) == []

    kill_and_fill(commands, command, changes, "config.json", goes_on)


def test_export(commands, whole):
    command = ("export", str(whole.folder / "run"), "--out", "out", "--to", "sqat")
    kill_conversion(commands, command, ("sqat.model_card",))


@pytest.fixture
def stock_folder(tmp_path):
    """A small Llama and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sqat.convert.files import quiet
    from sqat.data.stories import story
    from sqat.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    sizes = {"vocab_size": 307, "hidden_size": 24, "intermediate_size": 13, "num_hidden_layers": 2, "head_dim": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 61}
    with quiet():
        LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=0)).save_pretrained(tmp_path / "stock")
    train_tokenizer([story(i, seed=0, split="train") for i in range(30)], 307).save(tmp_path / "stock")
    return str(tmp_path / "stock")


@pytest.mark.skipif(not FULL, reason="make test-faults runs it")
def test_convert_to_fewer_heads(commands, stock_folder):
    kill_conversion(
        commands, ("convert", stock_folder, "--out", "out", "--query-heads", "2", "--method", "mean"), CONVERT
    )


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


@pytest.mark.parametrize("part", range(PARTS))
def test_compare(start, part):
    """The comparison is asked to stop, then killed, and its runs end by themselves; the next start waits for them."""
    command = ("compare", "plan.yaml", "--out", "out")
    whole = start("whole")
    changes = succeeded(whole(*command, modules=COMPARE, before=UNDRAWN)).changes
    begun = next(i + 1 for i, change in enumerate(changes) if "sqa-seed0/output.log" in change)  # and so the other, too
    for n in numbers(changes, 48, 1, part) if FULL else [begun]:
        sqat = start(f"at-{n}")
        if n == begun:
            stopped = sqat(*command, action="signal", at=n, value=signal.SIGTERM)
            assert (stopped.code, "the same command goes on" in stopped.output) == (143, True)
        assert sqat(*command, action="kill", at=min(n, 4)).code == KILLED
        succeeded(sqat(*command, before=UNDRAWN))
        assert results(sqat.folder / "out") == results(whole.folder / "out")
        assert {*content(sqat.folder / "out")} == {*content(whole.folder / "out")}
        for run in (whole.folder / "out" / "runs").iterdir():
            assert_same_run(sqat.folder / "out" / "runs" / run.name, run)
        assert litter(sqat.folder) == []
        shutil.rmtree(sqat.folder)
