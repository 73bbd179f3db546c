"""Ctrl-C and SIGTERM, once and twice, whatever the run is doing: what is on the disk is whole, and the run goes on."""

import signal

import pytest
from harness import FULL, KILLED, TRAIN, assert_whole_and_goes_on, first_change, litter, newest_is_whole

from sqat.train.state import read_state

MORE = [
    ("train_step", 7, signal.SIGTERM, 7),  # the end's validation is made up for, too
    ("train_step", 5, signal.SIGINT, 5),  # between two log lines
    ("write_checkpoint", 2, signal.SIGINT, 3),
]

# Python that has the command send itself a signal in the n-th call of a function of the training loop.
IN_CALL = """
import os
import sqat.train.trainer as module

original, calls = module.{name}, []

def signalled(*arguments, **options):
    calls.append(1)
    if len(calls) == {n}:
        os.kill(os.getpid(), {number})
    return original(*arguments, **options)

module.{name} = signalled
"""


def in_call(sqat, name, n, number):
    return sqat(*TRAIN, before=IN_CALL.format(name=name, n=n, number=int(number)))


@pytest.mark.parametrize(
    ("name", "n", "number", "step"),
    [
        ("evaluate", 1, signal.SIGINT, 3),  # in validation, which is ended first
        ("train_step", 3, signal.SIGTERM, 3),  # validation of step 3 is made up for
        *(MORE if FULL else []),
    ],
)
def test_one_signal(whole, commands, name, n, number, step):
    sqat = commands("run")
    ended = in_call(sqat, name, n, number)
    assert ended.code == 128 + number
    assert f"Stopped at step {step} of 7" in ended.output
    assert newest_is_whole(sqat.folder / "run") == step
    assert_whole_and_goes_on(sqat, whole)


@pytest.mark.parametrize(
    ("name", "n", "number"),
    [
        ("evaluate", 3, signal.SIGTERM),
        ("write_checkpoint", 7, signal.SIGINT),
        *([("write_checkpoint", 6, signal.SIGTERM)] if FULL else []),  # before the evaluation
    ],
)
def test_a_signal_after_the_last_step(whole, commands, name, n, number):
    """What is left is done, and the run is finished."""
    sqat = commands("run")
    ended = in_call(sqat, name, n, number)
    assert ended.code == 0, ended.output
    assert newest_is_whole(sqat.folder / "run") == 7
    assert read_state(sqat.folder / "run" / "checkpoints" / "step-00000007").finished
    assert_whole_and_goes_on(sqat, whole)


@pytest.mark.parametrize(("n", "step"), [(3, 7), *([(2, 6)] if FULL else [])])
def test_killed_in_validation(whole, commands, n, step):
    """A checkpoint that is due comes before it."""
    sqat = commands("run")
    assert in_call(sqat, "evaluate", n, signal.SIGKILL).code == KILLED
    assert newest_is_whole(sqat.folder / "run") == step
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
