"""Seeds of random numbers drawn on the CPU: from torch's generator, or from one of this thread's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_thread = threading.local()


def draw_seeds(count: int) -> list[int]:
    """`count` numbers from 0 to 2^63 - 1. `torch.manual_seed` fixes them, or the generator of :func:`drawing_from`."""
    generator = getattr(_thread, "generator", None)
    return torch.empty(count, dtype=torch.int64).random_(generator=generator).tolist()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """In this thread seeds come from `generator`: threads that share torch's own would draw in no fixed order."""
    before = getattr(_thread, "generator", None)
    _thread.generator = generator
    try:
        yield
    finally:
        _thread.generator = before
