"""Decoding on a CPU without torch's cost per operation: a step whose arithmetic is numpy's, in memory taken once.

A small model's step is some two hundred operations of a microsecond or two. torch spends about as long again on
each of them before it begins, and its modules more; numpy's cost less than half of that, and numpy's matrix library
is twice as fast as torch's at a matrix times one row. Weights are shared between the two, not copied.
"""

from sqat.cpu.lean.fits import find_hook, why_not_lean
from sqat.cpu.lean.step import LeanStep

__all__ = ["LeanStep", "find_hook", "why_not_lean"]
