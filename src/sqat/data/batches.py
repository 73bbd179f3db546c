"""Token files as batches: one padded document a row, or rows packed full of documents.

Shapes: B rows of a batch, T context length, L documents that a batch touches. Every batch is a function of (seed,
epoch, row), so training can go on from any state without replaying what came before.

What is known per document is computed on the host, what is known per token on the device that holds the tokens: a GPU
then makes its batches itself, and nothing is ever waited for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sqat.config import CEILINGS
from sqat.data.token_store import TokenStore, to_device
from sqat.data.tokenizer import EOS, PAD
from sqat.data.tokens import TokenFile
from sqat.errors import ConfigError

IGNORE = -100
MODES = ("packed", "rows")


class Batch(NamedTuple):
    """int64 tensors of shape (B, T)."""

    inputs: Tensor
    targets: Tensor
    """The next token, or IGNORE where there is none: padding, and the last token of a document."""
    positions: Tensor | None
    """Position in the document; None where every row is one document, from position 0."""
    documents: Tensor | None
    """Number of the document in its row, from 0; padding counts as one more. None as above."""
    counted: int | None = None
    """`num_targets`, where whoever made the batch knows it."""

    @property
    def num_targets(self) -> int:
        """Targets that are not IGNORE: at least one in every row. Waits for the device unless `counted` is set."""
        return int((self.targets != IGNORE).sum()) if self.counted is None else self.counted

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; a copy to a GPU goes through pinned memory, and is not waited for."""
        return Batch._make(to_device(part, device) if isinstance(part, Tensor) else part for part in self)


class BatchState(NamedTuple):
    """Where the next batch starts."""

    epoch: int
    row: int

    def to_dict(self) -> dict[str, int]:
        return self._asdict()

    @classmethod
    def from_dict(cls, state: dict[str, int]) -> Self:
        """Raises ConfigError where `state` is not what `to_dict` gives."""
        if set(state) != set(cls._fields):
            raise ConfigError(f"batch state has the keys {sorted(state)}; it must have {sorted(cls._fields)}")
        return cls(**state)


START = BatchState(0, 0)


@dataclass(frozen=True)
class _Order:
    """The documents of one epoch, laid end to end."""

    documents: np.ndarray  # (documents,), numbers in the token file
    starts: np.ndarray  # (documents + 1,), where each begins, and the end


class Batches:
    """All batches of a token file, in an order drawn anew for every epoch.

    mode "rows": a row is one document, cut to `context_length` tokens or padded to it at the end. Causal attention
    needs neither positions nor a mask for that. As the original system does, `padding_as_target` counts padding as
    targets (all columns but the last), and `end_truncated` puts [EOS] in the last column of a document that was cut.

    mode "packed": the documents of an epoch, end to end, are cut into rows. Positions restart at every document and at
    every row, and attention is to stay within `Batch.documents`. A document that a row's end cuts, or longer than a
    row, goes on in the next one, without its context. Every next token within a document is a target exactly once an
    epoch. Padding fills only the last row.

    Batches are on `device`; see `place`.

    Raises ConfigError for unusable arguments.
    """

    def __init__(
        self,
        tokens: TokenFile,
        *,
        batch_size: int,
        context_length: int,
        mode: str = "packed",
        shuffle: bool = True,
        seed: int = 0,
        padding_as_target: bool = False,
        end_truncated: bool = False,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        _check_at_least("batch_size", batch_size, 1)
        _check_at_least("context_length", context_length, 2)
        if context_length > CEILINGS["context_length"]:
            raise ConfigError(f"context_length is {context_length}; it must be at most {CEILINGS['context_length']:,}")
        _check_at_least("seed", seed, 0)
        if mode not in MODES:
            raise ConfigError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        if mode == "packed" and (padding_as_target or end_truncated):
            raise ConfigError('padding_as_target and end_truncated are for mode "rows", not "packed"')
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        self.mode = mode
        self.shuffle = shuffle
        self.seed = seed
        self.padding_as_target = padding_as_target
        self.end_truncated = end_truncated
        self.drop_last = drop_last
        self._offsets = np.asarray(tokens.offsets)  # a plain view of the memory map, which indexes faster
        self._lengths = np.diff(self._offsets)
        # The stream's last token has no target, so it opens no row of its own: every row has a target.
        self.rows_per_epoch = len(tokens) if mode == "rows" else -(-(tokens.num_tokens - 1) // context_length)
        if drop_last and self.rows_per_epoch < batch_size:
            raise ConfigError(
                f"drop_last leaves nothing of {self.rows_per_epoch} rows at batch_size {batch_size}; "
                "use a smaller batch_size or drop_last=False"
            )
        self._order_of: tuple[int, _Order] | None = None
        self.place(device)

    def place(self, device: torch.device | str) -> None:
        """Make the batches to come for a device: on a GPU there, where it has room for the tokens (see `TokenStore`);
        else on the host, to be copied.
        """
        self.device = torch.device(device)
        self._store = TokenStore(self.tokens.tokens, self.device)

    def __len__(self) -> int:
        """Batches of one epoch, from row 0."""
        if self.drop_last:
            return self.rows_per_epoch // self.batch_size
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def targets_per_epoch(self) -> int:
        """Targets of all batches of one epoch together, without `drop_last`."""
        if self.padding_as_target:
            return self.rows_per_epoch * (self.context_length - 1)
        lengths = np.minimum(self._lengths, self.context_length) if self.mode == "rows" else self._lengths
        return int(lengths.sum()) - len(lengths)  # the first token of a document is no target

    def epoch(self, state: BatchState) -> Iterator[tuple[Batch, BatchState]]:
        """(batch, state after it) from `state` to the end of its epoch; the last state begins the next epoch."""
        self._check_place(state.epoch, state.row)
        rows_needed = self.batch_size if self.drop_last else 1
        starts = range(state.row, self.rows_per_epoch - rows_needed + 1, self.batch_size)
        for row in starts:
            following = row + self.batch_size
            after = BatchState(state.epoch, following) if following in starts else BatchState(state.epoch + 1, 0)
            yield self.batch(state.epoch, row), after

    def forever(self, state: BatchState = START) -> Iterator[tuple[Batch, BatchState]]:
        """`epoch` after `epoch`, without end."""
        while True:
            yield from self.epoch(state)
            state = BatchState(state.epoch + 1, 0)

    def batch(self, epoch: int, row: int) -> Batch:
        """The batch that starts at a row; fewer than `batch_size` rows where the epoch ends. Raises ConfigError."""
        self._check_place(epoch, row)
        end = min(row + self.batch_size, self.rows_per_epoch)
        make = self._rows if self.mode == "rows" else self._packed
        return make(self._order(epoch), row, end).to(self.device)

    def _rows(self, order: _Order, first: int, last: int) -> Batch:
        documents = order.documents[first:last]
        whole = self._lengths[documents]
        lengths = np.minimum(whole, self.context_length)
        table = self._store.upload(self._offsets[documents], lengths, whole > lengths)
        offset_L1, length_L1, cut_L1 = table.unsqueeze(-1)
        columns = torch.arange(self.context_length, device=self._store.device)
        real = columns < length_L1
        inputs = torch.where(real, self._store.read(offset_L1 + columns.minimum(length_L1 - 1)), PAD)
        if self.end_truncated:
            inputs[:, -1:].masked_fill_(cut_L1.bool(), EOS)
        targets = torch.full_like(inputs, IGNORE)
        following = inputs[:, 1:]
        targets[:, :-1] = following if self.padding_as_target else torch.where(real[:, 1:], following, IGNORE)
        counted = following.numel() if self.padding_as_target else int(lengths.sum()) - len(lengths)
        return Batch(inputs, targets, None, None, counted)

    def _packed(self, order: _Order, first: int, last: int) -> Batch:
        begin, end = first * self.context_length, min(last * self.context_length, int(order.starts[-1]))
        size = (last - first) * self.context_length
        # Documents a to b - 1 of the order reach into the stretch from begin to end of the stream.
        a = int(np.searchsorted(order.starts, begin, side="right")) - 1
        b = int(np.searchsorted(order.starts, end, side="left"))
        starts, ends = order.starts[a:b], order.starts[a + 1 : b + 1]
        tokens_each = np.minimum(ends, end) - np.maximum(starts, begin)
        shifts = self._offsets[order.documents[a:b]] - starts
        padding = (size, end, 0, 0, b)  # one more document, as it were
        parts = (np.cumsum(tokens_each), starts, ends, shifts, np.arange(a, b))
        table = self._store.upload(*(np.append(part, filler) for part, filler in zip(parts, padding, strict=True)))
        column = torch.arange(size, device=self._store.device)
        which = torch.searchsorted(table[0], column, right=True)  # the document of each token
        document_starts, document_ends, shift, numbers = table[1:].index_select(1, which)
        stream = column + begin
        real, has_next = stream < end, stream + 1 < document_ends
        places = torch.where(real, stream + shift, 0)
        inputs = torch.where(real, self._store.read(places), PAD)
        targets = torch.where(has_next, self._store.read(places + has_next), IGNORE)
        positions = torch.minimum(stream - document_starts, stream % self.context_length)
        inputs, targets, positions, numbers = (
            flat.view(-1, self.context_length) for flat in (inputs, targets, positions, numbers)
        )
        counted = end - begin - int((ends <= end).sum())  # the last token of a document is no target's
        return Batch(inputs, targets, positions, numbers - numbers[:, :1], counted)

    def _order(self, epoch: int) -> _Order:
        if self._order_of is None or self._order_of[0] != epoch:
            documents = np.arange(len(self._lengths))
            if self.shuffle:
                np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))).shuffle(documents)
            starts = np.concatenate([[0], np.cumsum(self._lengths[documents])])
            self._order_of = (epoch, _Order(documents, starts))
        return self._order_of[1]

    def _check_place(self, epoch: int, row: int) -> None:
        _check_at_least("epoch", epoch, 0)
        if not 0 <= row < self.rows_per_epoch:
            raise ConfigError(f"row is {row}; an epoch has the rows 0 to {self.rows_per_epoch - 1}")


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")
