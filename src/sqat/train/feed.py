"""The micro-batches of each step, and where they end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch

from sqat.data.batches import Batch, Batches, BatchState
from sqat.train.share import own_rows


class StepData(NamedTuple):
    """What one step trains on."""

    micro_batches: list[Batch]  # this process's rows of them
    targets: int  # in the micro-batches of all processes
    after: BatchState  # where the next step goes on


def feed(batches: Batches, start: BatchState, accumulation: int, device: torch.device) -> Iterator[StepData]:
    """Step after step, without end, of `accumulation` micro-batches each; the last step of an epoch may have fewer."""
    data = start
    while True:
        rows = batches.epoch(data)
        while group := list(islice(rows, accumulation)):
            data = group[-1][1]
            targets = sum(batch.num_targets for batch, _ in group)
            yield StepData([own_rows(batch).to(device) for batch, _ in group], targets, data)
