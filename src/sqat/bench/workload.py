"""The text that all candidates read: the same documents, the same tokenizer.

Shape letters: B rows, T context length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sqat.bench.results import BenchError
from sqat.bench.settings import BenchSettings
from sqat.data.batches import Batch, Batches
from sqat.data.tokens import TokenFile
from sqat.run_config import DataConfig
from sqat.train.prepare import prepare_data

DOCUMENTS = 20_000  # as many as a run may need
QUICK_DOCUMENTS = 300


@dataclass(frozen=True)
class Workload:
    """Documents in the forms that the candidates want."""

    data: DataConfig
    tokens: TokenFile
    tokenizer: Path  # tokenizer.json
    texts: Path  # one JSON object a line, with the key "text"

    def batch(self, settings: BenchSettings, mode: str = "packed") -> Batch:
        """A training batch, (B, T), of full rows ("packed") or of a padded document each ("rows").

        Raises:
            BenchError: too few documents for one.
        """
        rows, length = settings.batch_size, settings.config.context_length
        batch = Batches(self.tokens, batch_size=rows, context_length=length, mode=mode).batch(0, 0)
        if len(batch.inputs) < rows or (mode == "packed" and bool((batch.inputs == 0).any())):
            raise BenchError(f"{settings.data} is too small: it does not fill {rows} rows of {length} tokens")
        return batch


def prepare_workload(settings: BenchSettings, folder: Path) -> Workload:
    """Open the data, train the tokenizer and tokenise, or take both from the cache; write the texts for the peers."""
    data = DataConfig(
        source=settings.data, limit=QUICK_DOCUMENTS if settings.quick else DOCUMENTS, validation_limit=100
    )
    prepared = prepare_data(data, settings.config.vocab_size)
    tokenizer = prepared.tokenizer.save(folder / "tokenizer")
    texts = folder / "texts.jsonl"
    with texts.open("w", encoding="utf-8") as file:
        for text in _documents(data):
            file.write(json.dumps({"text": text}) + "\n")
    return Workload(data, prepared.train, tokenizer, texts)


def _documents(data: DataConfig) -> list[str]:
    from sqat.train.prepare import open_sources

    return list(open_sources(data)[0].documents())


def plain(batch: Batch) -> Batch:
    """The same rows without their documents: causal attention over the whole row, as the peers do it."""
    return batch._replace(positions=None, documents=None)


def save_batch(batch: Batch, path: Path) -> Path:
    """For a child process; see :func:`load_batch`."""
    tensors = {name: part.clone() for name, part in batch._asdict().items() if isinstance(part, Tensor)}
    save_file(tensors, path, metadata={} if batch.counted is None else {"counted": str(batch.counted)})
    return path


def load_batch(path: str | Path, device: str) -> Batch:
    """What :func:`save_batch` wrote."""
    with safe_open(path, framework="pt") as file:
        counted = (file.metadata() or {}).get("counted")
        parts: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    whole = {**dict.fromkeys(Batch._fields), **parts, "counted": None if counted is None else int(counted)}
    return Batch(**whole).to(device)
