"""Ctrl-C and SIGTERM, once and twice, whatever the run is doing: what is on the disk is whole, and the run goes on."""

import re
import signal

import pytest
from harness import FULL, KILLED, TRAIN, assert_whole_and_goes_on, first_change, litter, newest_is_whole

from sqat.train.state import read_state

MORE = [
    ("train_step", 7, signal.SIGTERM, 7, 143),  # the end's validation is made up for, too
    ("train_step", 5, signal.SIGINT, 5, 130),  # between two log lines
    ("write_checkpoint", 2, signal.SIGINT, 3, 130),
    ("write_checkpoint", 6, signal.SIGTERM, 7, 0),  # before the evaluation
    ("evaluate", 2, signal.SIGKILL, 6, KILLED),
]

# Python that has the command send itself a signal in the n-th call of a function of the training loop.
IN_CALL = """
import os
from sqat.train import checkpoints, step, trainer

module = next(place for place in (trainer, step, checkpoints) if hasattr(place, "{name}"))
original, calls = module.{name}, []

def signalled(*arguments, **options):
    calls.append(1)
    if len(calls) == {n}:
        os.kill(os.getpid(), {number})
    return original(*arguments, **options)

module.{name} = signalled
"""


@pytest.mark.parametrize(
    ("name", "n", "number", "step", "code"),
    [
        ("evaluate", 1, signal.SIGINT, 3, 130),  # in validation, which is ended first
        ("train_step", 3, signal.SIGTERM, 3, 143),  # validation of step 3 is made up for
        ("evaluate", 3, signal.SIGTERM, 7, 0),  # after the last step what is left is done, and the run is finished
        ("write_checkpoint", 7, signal.SIGINT, 7, 0),
        ("evaluate", 3, signal.SIGKILL, 7, KILLED),  # a checkpoint that is due comes before validation
        *(MORE if FULL else []),
    ],
)
def test_one_signal(whole, commands, name, n, number, step, code):
    sqat = commands("run")
    ended = sqat(*TRAIN, before=IN_CALL.format(name=name, n=n, number=int(number)))
    assert ended.code == code, ended.output
    assert code <= 0 or re.search(rf"(?s)Stopped at step {step} of 7.*--resume", ended.output)
    assert newest_is_whole(sqat.folder / "run") == step
    assert code or read_state(sqat.folder / "run" / "checkpoints" / "step-00000007").finished
    assert_whole_and_goes_on(sqat, whole)


@pytest.mark.usefixtures("needs_shim")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("gap", [1, 30] if FULL else [1])
def test_two_signals_in_a_save(whole, commands, number, gap):
    """The second ends the command at once; Ctrl-C tidies up even so."""
    sqat = commands("run")
    save = first_change(whole, "write", "/.step-00000004")
    ended = sqat(*TRAIN, action="signal", at=save, again=gap, value=number)
    assert ended.code == (-number if number == signal.SIGTERM else 128 + number)
    assert newest_is_whole(sqat.folder / "run") in (3, 4)
    if number == signal.SIGINT:
        assert litter(sqat.folder) == []
    assert_whole_and_goes_on(sqat, whole)
