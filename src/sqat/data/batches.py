"""Batches of a token file: rows of one padded document each, or rows packed full of documents.

Shapes: B rows of a batch, T context length, L documents that a batch touches. Every batch is a function of (seed,
epoch, row), so training resumes from any state without replaying what came before.

The host computes what is known per document, the device that holds the tokens what is known per token: a GPU makes its
batches itself, and nothing waits for it.
"""

import logging
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sqat.data.tokenizer import EOS, PAD
from sqat.data.tokens import TokenFile
from sqat.errors import ConfigError

IGNORE = -100
MEMORY_SHARE = 0.25  # of a GPU's free memory, that the tokens may take there

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One batch: int64 tensors of shape (B, T)."""

    inputs: Tensor
    """Token ids."""
    targets: Tensor
    """The next token ids, or IGNORE where there is none: in padding, and at the last token of a document."""
    positions: Tensor | None
    """Positions in the document; None if every row is one document, from position 0."""
    documents: Tensor | None
    """Numbers of the documents in a row, from 0; padding counts as one more. None if every row is one document."""
    counted: int | None = None
    """`num_targets`, if whoever made the batch knows it."""

    @property
    def num_targets(self) -> int:
        """Number of targets that are not IGNORE; waits for the device unless `counted` is set."""
        return int((self.targets != IGNORE).sum()) if self.counted is None else self.counted

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device. Copies to a GPU are asynchronous."""
        return Batch._make(to_device(part, device) if isinstance(part, Tensor) else part for part in self)


class BatchState(NamedTuple):
    """Where the next batch starts."""

    epoch: int
    row: int


START = BatchState(0, 0)


class _Order(NamedTuple):
    """The documents of one epoch, laid end to end."""

    epoch: int
    documents: np.ndarray  # (documents,), numbers in the token file
    starts: np.ndarray  # (documents + 1,), where each begins, and the end


class Batches:
    """All batches of a token file, in a new order every epoch.

    In mode "packed", the documents of an epoch, end to end, are cut into rows. Positions restart at every document and
    at every row, and attention must stay within `Batch.documents`. A document that a row's end cuts goes on in the next
    row, without its context. Every next token within a document is a target exactly once an epoch. Only the last row
    has padding.

    In mode "rows", a row is one document, cut to `context_length` tokens or padded at the end. Causal attention needs
    neither positions nor a mask for that.

    Args:
        tokens: the documents.
        batch_size: rows of a batch.
        context_length: tokens of a row.
        mode: "packed" or "rows".
        shuffle: whether to draw a new order every epoch.
        seed: determines the orders.
        padding_as_target: mode "rows" only: rows as in the original. Padding counts as targets, in all columns but the
            last, and documents that were cut end in [EOS] too.
        device: where batches are needed; see :meth:`place`.

    Raises:
        ConfigError: `batch_size` is below 1, or `context_length` below 2.
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
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("context_length", context_length, 2)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        self.tokens = tokens
        self.batch_size = batch_size
        self.context_length = context_length
        self.mode = mode
        self.shuffle = shuffle
        self.seed = seed
        self.padding_as_target = padding_as_target
        self._offsets = np.asarray(tokens.offsets)  # a plain view of the memory map indexes faster
        self._lengths = np.diff(self._offsets)
        # The last token of the stream has no target, so it gets no row of its own: every row has a target.
        self.rows_per_epoch = len(tokens) if mode == "rows" else -(-(tokens.num_tokens - 1) // context_length)
        self._order_of: _Order | None = None
        self.place(device)

    def place(self, device: torch.device | str) -> None:
        """Make the following batches for a device: on a GPU itself, if it has room for the tokens (see `load_ids`);
        otherwise on the host, and copy them.
        """
        self.device = torch.device(device)
        self._ids = load_ids(self.tokens.tokens, self.device)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def targets_per_epoch(self) -> int:
        """Number of targets in an epoch, all rows included."""
        if self.padding_as_target:
            return self.rows_per_epoch * (self.context_length - 1)
        lengths = np.minimum(self._lengths, self.context_length) if self.mode == "rows" else self._lengths
        return int(lengths.sum()) - len(lengths)  # the first token of a document is not a target

    def epoch(self, state: BatchState) -> Iterator[tuple[Batch, BatchState]]:
        """(batch, state after it) from `state` to the end of its epoch; the last state begins the next epoch."""
        starts = range(state.row, self.rows_per_epoch, self.batch_size)
        for row in starts:
            following = row + self.batch_size
            after = BatchState(state.epoch, following) if following in starts else BatchState(state.epoch + 1, 0)
            yield self.batch(state.epoch, row), after

    def forever(self, state: BatchState = START) -> Iterator[tuple[Batch, BatchState]]:
        """(batch, state after it) from `state`, one epoch after another, without end."""
        while True:
            yield from self.epoch(state)
            state = BatchState(state.epoch + 1, 0)

    def batch(self, epoch: int, row: int) -> Batch:
        """The batch that starts at a row; at the end of the epoch it has fewer than `batch_size` rows."""
        end = min(row + self.batch_size, self.rows_per_epoch)
        make = self._rows if self.mode == "rows" else self._packed
        return make(self._order(epoch), row, end).to(self.device)

    def _rows(self, order: _Order, first: int, last: int) -> Batch:
        documents = order.documents[first:last]
        whole = self._lengths[documents]
        lengths = np.minimum(whole, self.context_length)
        table = self._upload(self._offsets[documents], lengths, whole > lengths)
        offset_L1, length_L1, cut_L1 = table.unsqueeze(-1)
        columns = torch.arange(self.context_length, device=self._ids.device)
        real = columns < length_L1
        inputs = torch.where(real, self._read(offset_L1 + columns.minimum(length_L1 - 1)), PAD)
        if self.padding_as_target:
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
        padding = (size, end, 0, 0, b)  # padding acts as one more document
        parts = (np.cumsum(tokens_each), starts, ends, shifts, np.arange(a, b))
        table = self._upload(*(np.append(part, filler) for part, filler in zip(parts, padding, strict=True)))
        column = torch.arange(size, device=self._ids.device)
        which = torch.searchsorted(table[0], column, right=True)  # the document of each token
        document_starts, document_ends, shift, numbers = table[1:].index_select(1, which)
        stream = column + begin
        real, has_next = stream < end, stream + 1 < document_ends
        places = torch.where(real, stream + shift, 0)
        inputs = torch.where(real, self._read(places), PAD)
        targets = torch.where(has_next, self._read(places + has_next), IGNORE)
        positions = torch.minimum(stream - document_starts, stream % self.context_length)
        inputs, targets, positions, numbers = (
            flat.view(-1, self.context_length) for flat in (inputs, targets, positions, numbers)
        )
        counted = end - begin - int((ends <= end).sum())  # the last token of a document has no target
        return Batch(inputs, targets, positions, numbers - numbers[:, :1], counted)

    def _order(self, epoch: int) -> _Order:
        if self._order_of is None or self._order_of.epoch != epoch:
            documents = np.arange(len(self._lengths))
            if self.shuffle:
                np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))).shuffle(documents)
            starts = np.concatenate([[0], np.cumsum(self._lengths[documents])])
            self._order_of = _Order(epoch, documents, starts)
        return self._order_of

    def _read(self, places: Tensor) -> Tensor:
        """The ids at some places: int64, in the shape of `places`."""
        return self._ids[places].long() & (256**self._ids.itemsize - 1)

    def _upload(self, *columns: np.ndarray) -> Tensor:
        """Integers or booleans, each (L,), as one int64 tensor (columns, L) where the ids are."""
        table = torch.from_numpy(np.stack(columns).astype(np.int64, copy=False))
        return to_device(table, self._ids.device)


def load_ids(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Token ids, (num_tokens,), as signed integers of their size, which more of torch's kernels take. A GPU holds them
    if they take at most `MEMORY_SHARE` of its free memory; otherwise they stay in the memory map.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
        ids = torch.from_numpy(np.asarray(tokens).view(f"int{8 * tokens.itemsize}"))
    if device.type != "cuda":
        return ids
    free = torch.cuda.mem_get_info(device)[0]
    if ids.nbytes <= MEMORY_SHARE * free:
        return ids.to(device)
    template = "the tokens (%.1f GB) stay on the host: more than %.0f %% of the free GPU memory (%.1f GB)"
    logger.info(template, ids.nbytes / 1e9, 100 * MEMORY_SHARE, free / 1e9)
    return ids


def to_device(part: Tensor, device: torch.device | str) -> Tensor:
    """`part` on a device. A copy to a GPU goes through pinned memory, which makes it asynchronous."""
    if part.device.type == "cpu" and torch.device(device).type == "cuda":
        part = part.pin_memory()
    return part.to(device, non_blocking=True)
