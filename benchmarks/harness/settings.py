"""What all benchmarks are told, and what they share: the time left, the text, the machine's ceiling.

Shape letters: B rows, T context length.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.harness.ceiling import Ceiling, measure_ceiling
from benchmarks.harness.peers import missing
from benchmarks.harness.results import BenchError, NotMeasured
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sqat import DataConfig, ModelConfig, preset
from sqat.data.batches import Batch, Batches
from sqat.data.tokens import TokenFile
from sqat.errors import ConfigError
from sqat.train.prepare import open_sources, prepare_data

QUICK_MODEL = {"vocab_size": 307, "num_layers": 2, "intermediate_size": 32, "context_length": 32}
BATCH_ROWS = {"cpu": 64, "cuda": 256}  # 256 is the card's
DOCUMENTS, QUICK_DOCUMENTS = 20_000, 300


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Args:
        device: "cpu" or "cuda".
        model: a preset without a window and with at least as many query as key/value heads; peers can be no other.
        data: a text source, as of `sqat train --data`.
        rounds: how often each candidate is measured.
        quick: small sizes, to check that everything runs.
        compiled: also measure the compiled training step, which takes a minute to compile.
        minutes: nothing starts after this time; `None` for no limit.
        lengths: of `attention` and `long`, in tokens; empty for those that suit the device.
        peers: also measure other libraries and the naive twin.

    Raises:
        ConfigError: an unusable value.
    """

    device: str = "cpu"
    model: str = "sqat-mm"
    data: str = "stories"
    rounds: int = 3
    quick: bool = False
    compiled: bool = False
    minutes: float | None = None
    lengths: tuple[int, ...] = ()
    peers: bool = True

    def __post_init__(self) -> None:
        config = preset(self.model)
        checks = {
            "rounds": (self.rounds >= 1, "at least 1"),
            "minutes": (self.minutes is None or self.minutes > 0, "positive, or left out for no limit"),
            "lengths": (all(length > 0 for length in self.lengths), "positive numbers of tokens"),
            "model": (
                config.window is None and config.num_query_heads >= config.num_kv_heads,
                "a preset without a window and without more key/value heads than query heads: peers have neither",
            ),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, but must be {wanted}")

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
        folder: an empty folder for temporary files.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.deadline = math.inf  # on the clock of `time.monotonic`; nothing starts after it

    @property
    def alternation(self) -> dict[str, Any]:
        """Arguments for :func:`benchmarks.harness.timing.alternate`."""
        return {"rounds": self.settings.rounds, "deadline": self.deadline}

    def has(self, peer: str) -> bool:
        """Whether to measure a peer: it is wanted and installed."""
        return self.settings.peers and not missing(peer)

    def absent(self, *peers: str) -> dict[str, str]:
        """How to install those of the peers that are wanted and missing."""
        return {peer: how for peer in peers if self.settings.peers and (how := missing(peer))}

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
    def ceiling(self) -> Ceiling:
        """What matrix products alone reach on this device."""
        return measure_ceiling(self.settings.device, self.settings.rounds, quick=self.settings.quick)

    @cached_property
    def workload(self) -> Workload:
        """The text that all candidates read, with a tokenizer trained on it."""
        settings, texts = self.settings, self.folder / "texts.jsonl"
        limit = QUICK_DOCUMENTS if settings.quick else DOCUMENTS
        data = DataConfig(source=settings.data, limit=limit, validation_limit=100)
        prepared = prepare_data(data, settings.config.vocab_size)
        with texts.open("w", encoding="utf-8") as file:
            for text in open_sources(data)[0].documents():
                file.write(json.dumps({"text": text}) + "\n")
        return Workload(settings, data, prepared.train, prepared.tokenizer.save(self.folder / "tokenizer"), texts)


@dataclass(frozen=True)
class Workload:
    """The same documents in the forms that the candidates want."""

    settings: Settings
    data: DataConfig
    tokens: TokenFile
    tokenizer: Path  # tokenizer.json
    texts: Path  # JSON lines with the key "text"

    def batch(self, mode: str = "packed") -> Batch:
        """A training batch, (B, T), of full rows ("packed") or of one padded document each ("rows").

        Raises:
            BenchError: too few documents for one.
        """
        rows, length = self.settings.batch_size, self.settings.config.context_length
        batch = Batches(self.tokens, batch_size=rows, context_length=length, mode=mode).batch(0, 0)
        if len(batch.inputs) < rows or (mode == "packed" and bool((batch.inputs == 0).any())):
            raise BenchError(f"{self.settings.data} is too small: it does not fill {rows} rows of {length} tokens")
        return batch


def plain(batch: Batch) -> Batch:
    """The same rows without document boundaries: causal attention over the whole row, as the peers do it."""
    return batch._replace(positions=None, documents=None)


def save_batch(batch: Batch, path: Path) -> Path:
    """Write a batch for a child process; see :func:`load_batch`."""
    tensors = {name: part.clone() for name, part in batch._asdict().items() if isinstance(part, Tensor)}
    save_file(tensors, path, metadata={} if batch.counted is None else {"counted": str(batch.counted)})
    return path


def load_batch(path: str | Path, device: str) -> Batch:
    """Read what :func:`save_batch` wrote."""
    with safe_open(path, framework="pt") as file:
        counted = (file.metadata() or {}).get("counted")
        parts: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    whole = {**dict.fromkeys(Batch._fields), **parts, "counted": None if counted is None else int(counted)}
    return Batch(**whole).to(device)
