"""Which keys a query sees, and which of them a block of queries needs.

Nothing here is of the size queries × keys where sequences are long: rows are made for some queries at a time, and with
a window only for the keys in reach.

Shape letters: B batch, T queries, S keys, K key/value heads, C head_dim, G global tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Masks are made for this many queries at a time, so that memory stays linear in the sequence length.
QUERY_BLOCK = 1024


class Part(NamedTuple):
    """The keys that a block of queries may see, and the mask over them.

    `seen` is (B or 1, 1, queries, number of keys): boolean, or what is added to scores. Its keys are those at
    `global_BG` in each row, if not `None`, and after them those of the slice `keys`.
    """

    keys: slice
    global_BG: Tensor | None
    seen: Tensor

    def take(self, x_BKSC: Tensor) -> Tensor:
        """The part's keys or values, (B, K, number of keys, C)."""
        reach = x_BKSC[:, :, self.keys]
        return reach if self.global_BG is None else torch.cat((x_BKSC.gather(2, self._index(x_BKSC)), reach), dim=2)

    def add(self, total_BKSC: Tensor, gradient: Tensor) -> None:
        """Add the gradient of what :meth:`take` gave to that of all keys or values, in place."""
        if self.global_BG is None:
            total_BKSC[:, :, self.keys] += gradient
            return
        num_global = self.global_BG.shape[1]
        total_BKSC.scatter_add_(2, self._index(total_BKSC), gradient[:, :, :num_global])
        total_BKSC[:, :, self.keys] += gradient[:, :, num_global:]

    def _index(self, x_BKSC: Tensor) -> Tensor:
        assert self.global_BG is not None
        return self.global_BG[:, None, :, None].expand(len(x_BKSC), x_BKSC.shape[1], -1, x_BKSC.shape[3])


@dataclass(eq=False)
class AttentionMask:
    """Which keys each query sees, where "all before it" is not the whole answer.

    The T queries stand at the end of the S keys: query t is at key position S - T + t.

    Raises:
        ValueError: a window without causality, or global tokens without a window.
    """

    num_queries: int
    num_keys: int
    device: torch.device
    causal: bool = True
    documents_BS: Tensor | None = None  # queries see keys of their own document only, whose keys lie side by side
    first_key_B: Tensor | None = None  # keys before this one are left padding
    window: int | None = None  # position i sees i - window + 1 … i
    global_tokens: int = 0  # and the first so many of its document
    # Of a cache that rolls: which position of its document each key is, negative where no other position sees it. The
    # first `global_tokens` keys are then slots for positions that are not among the others, which follow in order.
    own_BS: Tensor | None = None

    whole: Tensor | None = None  # all rows, where they are kept, as the kernel wants them
    parts: dict[tuple[int, ...], Part] | None = field(default=None, repr=False)  # those made, where they are kept
    flex: BlockMask | None = field(default=None, repr=False)
    _starts_BS: Tensor | None = field(default=None, init=False, repr=False)
    _first_BT: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window is not None and not self.causal:
            raise ValueError(f"window is {self.window}, but must be None where causal is false")
        if self.global_tokens and self.window is None:
            raise ValueError(f"global_tokens is {self.global_tokens}, but must be 0 where window is None")

    def keep(self) -> Self:
        """Keep what is made, if it is not too much, so that a stack of layers makes it once."""
        if self.window is not None:
            self.parts = {} if self._uniform or self.window <= QUERY_BLOCK else None
        elif self.num_queries <= QUERY_BLOCK:
            seen = self.rows()
            self.whole = _added(seen, torch.float32) if self.device.type == "cpu" else seen
        return self

    @property
    def _uniform(self) -> bool:
        """Whether all rows are alike, so that what a query sees depends on its distance from the first key alone."""
        return self.documents_BS is None and self.first_key_B is None and self.own_BS is None

    @property
    def is_band(self) -> bool:
        """Whether a query sees the keys from one on up to its own, and no others (see :meth:`first_keys`)."""
        padded = self.first_key_B is not None or self.own_BS is not None
        return self.causal and not padded and not self.global_tokens and self.num_queries == self.num_keys

    def first_keys(self) -> Tensor:
        """Where `is_band`: the first key that each query sees, (B or 1, T)."""
        if self._first_BT is None:
            queries = torch.arange(self.num_queries, device=self.device)
            first = self.starts_BS.expand(-1, self.num_queries)
            if self.window is not None:
                first = first.maximum(queries - self.window + 1)
            self._first_BT = first.contiguous()
        return self._first_BT

    def part(self, start: int, stop: int) -> Part:
        """What queries start … stop may see, boolean."""
        if self.window is None:
            num_keys = self.num_keys - self.num_queries + stop if self.causal else self.num_keys
            seen = self.rows(start, stop) if self.whole is None else self.whole[:, :, start:stop, :num_keys]
            return Part(slice(num_keys), None, seen)
        first_query = self.num_keys - self.num_queries + start
        first_key = max(0, first_query - self.window + 1)
        keys = slice(first_key, first_query + stop - start)
        seen = self.rows(start, stop, first_key)
        if not self.global_tokens or first_key == 0:
            return Part(keys, None, seen)
        global_BG, seen_global = self._global(first_query, first_query + stop - start, first_key)
        rows = max(len(seen), len(seen_global))
        both = [x.expand(rows, -1, -1, -1) for x in (seen_global, seen)]
        return Part(keys, global_BG, torch.cat(both, dim=3))

    def added(self, start: int, stop: int, dtype: torch.dtype) -> Part:
        """:meth:`part` with what is added to scores: zero where a key is seen, minus infinity elsewhere."""
        key: tuple[int, ...] = (start, stop)
        if self.parts is not None:
            if self._uniform and self.window is not None:
                offset = self.num_keys - self.num_queries
                out_of_reach = min(max(0, offset + start - self.window + 1), self.global_tokens)
                key = (stop - start, min(offset + start, self.window - 1), out_of_reach)
            if (kept := self.parts.get(key)) is not None:
                first_query = self.num_keys - self.num_queries + start
                keys = slice(max(0, first_query - (self.window or 0) + 1), first_query + stop - start)
                return kept._replace(keys=keys, seen=kept.seen.to(dtype))
        part = self.part(start, stop)
        seen = part.seen
        part = part._replace(seen=_added(seen, dtype) if seen.dtype == torch.bool else seen.to(dtype))
        if self.parts is not None:
            self.parts[key] = part
        return part

    def rows(self, start: int = 0, stop: int | None = None, first_key: int = 0) -> Tensor:
        """Visibility of queries start … stop over the keys from `first_key` on, boolean, (B or 1, 1, queries, keys); a
        causal one's keys end at its last query.
        """
        stop = self.num_queries if stop is None else stop
        offset = self.num_keys - self.num_queries
        num_keys = offset + stop if self.causal else self.num_keys
        queries = torch.arange(offset + start, offset + stop, device=self.device).view(1, -1, 1)
        keys = torch.arange(first_key, num_keys, device=self.device).view(1, 1, -1)
        seen = keys <= queries if self.causal else torch.ones_like(keys <= queries)
        if self.window is not None:
            near = queries - keys < self.window
            if self.global_tokens:
                near = near | self._is_global(first_key, num_keys)
            seen = seen & near
        if self.documents_BS is not None:
            documents = self.documents_BS
            own = documents[:, offset + start : offset + stop, None] == documents[:, None, first_key:num_keys]
            seen = seen & own
        if self.first_key_B is not None:
            # A padded query sees itself, so that no row of the softmax is empty; nothing reads its result.
            seen = seen & ((keys >= self.first_key_B.view(-1, 1, 1)) | (keys == queries))
        if self.own_BS is not None:
            seen = seen & ((self.own_BS[:, None, first_key:num_keys] >= 0) | (keys == queries))
        return seen.unsqueeze(1)

    def _is_global(self, first_key: int, stop_key: int) -> Tensor:
        """Whether keys are among the first of their documents, (B or 1, 1, keys)."""
        if self.own_BS is not None:
            return self.own_BS[:, None, first_key:stop_key] < self.global_tokens
        starts = self.starts_BS if self.starts_BS.shape[1] == 1 else self.starts_BS[:, first_key:stop_key]
        keys = torch.arange(first_key, stop_key, device=self.device)
        return (keys - starts < self.global_tokens).unsqueeze(1)

    @property
    def starts_BS(self) -> Tensor:
        """Where the document of each key begins, (B or 1, S or 1); of a cache that rolls, where it would begin if the
        keys after the slots for global tokens went back so far, maybe before all keys.
        """
        if self._starts_BS is None:  # not `cached_property`, whose lock the compiler does not know
            self._starts_BS = self._find_starts()
        return self._starts_BS

    def _find_starts(self) -> Tensor:
        if self.own_BS is not None:
            return self.global_tokens - self.own_BS[:, self.global_tokens, None]
        if self.documents_BS is None:
            none = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            return none if self.first_key_B is None else self.first_key_B.unsqueeze(1)
        documents = self.documents_BS
        places = torch.arange(documents.shape[1], device=self.device).expand_as(documents)
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = (places * begins).cummax(dim=1).values
        return starts if self.first_key_B is None else starts.maximum(self.first_key_B.unsqueeze(1))

    def _global(self, first_query: int, stop_query: int, first_key: int) -> tuple[Tensor, Tensor]:
        """The global tokens before `first_key` that queries see: where they are, (B or 1, G), and whether, (B or 1, 1,
        queries, G). Only the first query's document can have any, since a later one begins after it.
        """
        starts = self.starts_BS
        first_B1 = starts if starts.shape[1] == 1 else starts[:, first_query, None]
        positions_G = torch.arange(self.global_tokens, device=self.device)
        global_BG = first_B1 + positions_G
        if self.own_BS is not None:
            global_BG = torch.where(positions_G < self.global_tokens - first_B1, positions_G, global_BG)
        there_BG = global_BG < first_key
        global_BG = global_BG.clamp(max=self.num_keys - 1)
        seen = there_BG[:, None, None].expand(-1, 1, stop_query - first_query, -1)
        if self.documents_BS is not None:
            documents = self.documents_BS
            own = documents.gather(1, global_BG.expand(len(documents), -1))
            seen = seen & (documents[:, None, first_query:stop_query, None] == own[:, None, None])
        return global_BG, seen


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def window_naive(num_queries: int, num_keys: int, window: int | None, global_tokens: int = 0) -> Tensor:
    """The definition, for tests: (T, S), true where a query, one of the last T of S positions, sees a key."""
    i, j = torch.arange(num_keys - num_queries, num_keys).unsqueeze(1), torch.arange(num_keys)
    return (j <= i) & ((i - j < (window or num_keys)) | (j < global_tokens))
