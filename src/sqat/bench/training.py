"""`sqat bench training`: a training step beside the peers', and training end to end as a user starts it."""

from __future__ import annotations

from sqat.bench.end_to_end_table import end_to_end_table
from sqat.bench.peers import absent
from sqat.bench.results import Result
from sqat.bench.settings import Context
from sqat.bench.step_table import step_table


def measure_training(context: Context) -> Result:
    """Both tables, and the ceiling that shares are given of."""
    with context.part(0.6):
        whole = end_to_end_table(context)
    return Result("training", [whole, step_table(context), context.ceiling.table], absent("transformers", "rxlm"))
