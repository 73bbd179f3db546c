"""What all benchmarks are told, and what they share: the data, the machine's ceiling."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqat.bench.results import NotMeasured
from sqat.config import Config, ModelConfig, require, require_choice, require_positive
from sqat.variants import preset

if TYPE_CHECKING:
    from sqat.bench.ceiling import Ceiling
    from sqat.bench.workload import Workload

QUICK_MODEL = {"vocab_size": 307, "num_layers": 2, "intermediate_size": 32, "context_length": 32}
BATCH_ROWS = {"cpu": 64, "cuda": 256}  # 256 is the card's


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Config):
    """How to measure.

    Raises:
        ConfigError: a field with an unusable value, or a GPU that is not there; the message names it.
    """

    device: str = "cpu"
    model: str = "sqat-mm"
    data: str = "stories"
    rounds: int = 3
    quick: bool = False  # small sizes, for tests
    compiled: bool = False  # also measure the compiled training step, which takes a minute to compile
    minutes: float | None = None  # nothing is begun after as many
    lengths: tuple[int, ...] = ()  # of `attention` and `long`, in tokens; none: those that suit the device

    def __post_init__(self) -> None:
        require_choice(self, "device", ("cpu", "cuda"))
        require_positive(self, "rounds")
        require(self.minutes is None or self.minutes > 0, self, "minutes", "positive, or left out for no limit")
        require(all(length > 0 for length in self.lengths), self, "lengths", "positive numbers of tokens")
        config = preset(self.model)
        like_peers = config.window is None and config.num_query_heads >= config.num_kv_heads
        right = "a preset without a window and without more key/value heads than query heads: peers have neither"
        require(like_peers, self, "model", right)
        if self.device == "cuda":
            import torch

            require(torch.cuda.is_available(), self, "device", "cpu, since no GPU is available")

    @property
    def config(self) -> ModelConfig:
        """The model to measure; smaller where `quick`."""
        config = preset(self.model)
        return config.replace(**QUICK_MODEL) if self.quick else config

    @property
    def batch_size(self) -> int:
        """Rows of a training step."""
        return 3 if self.quick else BATCH_ROWS[self.device]


class Context:
    """One run of the benchmarks.

    Args:
        settings: how to measure.
        folder: an empty folder for what the run writes on its way.
    """

    def __init__(self, settings: BenchSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.deadline = math.inf  # on the clock of `time.monotonic`; nothing is begun after it

    @property
    def alternation(self) -> dict[str, Any]:
        """Arguments for :func:`sqat.bench.timing.alternate`."""
        return {"rounds": self.settings.rounds, "deadline": self.deadline}

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Within it, the deadline leaves only this share of the time that is left."""
        whole, now = self.deadline, time.monotonic()
        self.deadline = now + share * (whole - now)
        try:
            yield
        finally:
            self.deadline = whole

    def seconds_left(self) -> float | None:
        """Until the deadline, for a child process; `None` without one.

        Raises:
            NotMeasured: the deadline is past.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise NotMeasured("the time budget was used up before its turn")
        return None if math.isinf(left) else left

    @cached_property
    def workload(self) -> Workload:
        from sqat.bench.workload import prepare_workload

        return prepare_workload(self.settings, self.folder)

    @cached_property
    def ceiling(self) -> Ceiling:
        from sqat.bench.ceiling import measure_ceiling

        return measure_ceiling(self.settings)
