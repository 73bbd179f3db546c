"""What to do when a GPU's memory is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sqat.errors import TrainingError


@contextmanager
def explain_out_of_memory(doing: str, batch_size: int, gradient_accumulation: int | None = None) -> Iterator[None]:
    """Turn torch's error into a TrainingError that names the batch size to try.

    Args:
        doing: such as "step 7".
        batch_size: rows at a time.
        gradient_accumulation: where it is training: that of now.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(_advice(doing, batch_size, gradient_accumulation)) from error


def _advice(doing: str, batch_size: int, gradient_accumulation: int | None) -> str:
    problem = f"the GPU's memory is not enough for {doing} with a batch_size of {batch_size}"
    smaller = next((n for n in range(batch_size // 2, 0, -1) if batch_size % n == 0), None)
    if gradient_accumulation is None:
        rest = "" if smaller is None else f": try a batch_size of {smaller}"
        return problem + (rest or ": a single row does not fit; try a shorter context")
    other = "gradient_checkpointing true, which computes part of the forward pass twice"
    if smaller is None:
        return f"{problem}: a single row does not fit. Try {other}, or a shorter context_length"
    accumulation = gradient_accumulation * (batch_size // smaller)
    return (
        f"{problem}: try a batch_size of {smaller} with a gradient_accumulation of {accumulation}, which keeps the "
        f"{batch_size * gradient_accumulation} rows of a step; or {other}. A run that has begun takes these with "
        "--resume"
    )
