"""Which keys a query attends to, and which keys a block of queries needs.

Nothing here is of the size queries × keys where sequences are long: rows are made for a block of queries at a time, and
with a window only for the keys in reach.

Shape letters: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sqat.errors import ConfigError
from sqat.model.dispatch import has_values

QUERY_BLOCK = 1024  # queries whose mask is made at a time, so that memory stays linear in the sequence length


@dataclass(eq=False)
class AttentionMask:
    """Which keys each query attends to, where plain causal attention is not enough.

    The T queries are the last of the S keys: query t is key S - T + t. Masks are computed once for a stack of layers.

    Args:
        num_queries, num_keys: T and S.
        device: of the masks.
        causal: whether queries see no later keys.
        documents_BS: (B, S); queries see only keys with their own number, which must be adjacent.
        first_key_B: (B,), the first key that is not left padding.
        window: query i sees keys i - window + 1 … i.
        global_tokens: the first so many keys of each document (or row) are seen by all after them; needs a window.
        positions_S: (S,), the keys' positions if they are not 0, 1, …, rising.
        whole: (B or 1, 1, T, S), the boolean mask itself, instead of all the above.

    Raises:
        ConfigError: a window below 1 or not causal, or global tokens without a window.
    """

    num_queries: int
    num_keys: int
    device: torch.device
    causal: bool = True
    documents_BS: Tensor | None = None
    first_key_B: Tensor | None = None
    window: int | None = None
    global_tokens: int = 0
    positions_S: Tensor | None = None
    whole: Tensor | None = None
    made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # for the layers that come later

    def __post_init__(self) -> None:
        check_window(self.window, self.global_tokens, self.causal)

    def visible(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The rule, as a function of row, query and key indices (tensors): whether the query sees the key."""
        offset = self.num_keys - self.num_queries
        causal, window, global_tokens = self.causal, self.window, self.global_tokens
        documents_BS, first_key_B, positions_S = self.documents_BS, self.first_key_B, self.positions_S
        starts_BS = self.starts_BS if global_tokens else None

        def sees(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query = query + offset
            itself = query == key
            query_at, key_at = (query, key) if positions_S is None else (positions_S[query], positions_S[key])
            seen = key_at <= query_at if causal else itself | ~itself
            if window is not None:
                near = query_at - key_at < window
                if starts_BS is not None:
                    start = starts_BS[row if len(starts_BS) > 1 else 0, key if starts_BS.shape[1] > 1 else 0]
                    near = near | (key_at - start < global_tokens)
                seen = seen & near
            if documents_BS is not None:
                own = row if len(documents_BS) > 1 else 0
                seen = seen & (documents_BS[own, query] == documents_BS[own, key])
            if first_key_B is not None:
                # Padding sees itself, so that no row of the softmax is empty; nothing reads its result.
                seen = seen & ((key_at >= first_key_B[row]) | itself)
            return seen

        return sees

    def rows(self, start: int = 0, stop: int | None = None, keys: list[slice] | None = None) -> Tensor:
        """What queries start … stop see of `keys` (all by default): boolean, (B or 1, 1, queries, keys)."""
        stop = self.num_queries if stop is None else stop
        keys = [slice(0, self.num_keys)] if keys is None else keys
        if self.whole is not None:
            return torch.cat([self.whole[:, :, start:stop, part] for part in keys], dim=3)
        num_rows = max(1 if given is None else len(given) for given in (self.documents_BS, self.first_key_B))
        row = torch.arange(num_rows, device=self.device).view(-1, 1, 1)
        query = torch.arange(start, stop, device=self.device).view(1, -1, 1)
        key = torch.cat([torch.arange(part.start, part.stop, device=self.device) for part in keys]).view(1, 1, -1)
        return self.visible()(row, query, key).unsqueeze(1)

    def reach(self, start: int, stop: int) -> list[slice]:
        """The keys that queries start … stop may see: one slice, or global tokens and those in the window's reach."""
        if type(self.num_keys) is not int:  # a symbol, which stands for any length
            return [slice(0, self.num_keys)]
        first_query = self.num_keys - self.num_queries + start
        last = first_query + stop - start if self.causal and self.positions_S is None else self.num_keys
        if self.window is None or self.positions_S is not None:
            return [slice(0, last)]
        near = slice(max(0, first_query - self.window + 1), last)
        if not self.global_tokens or near.start == 0:
            return [near]
        # Only the first query's document can have global tokens before the window: a later one begins within it.
        starts = self.starts_BS
        if not self._uniform and not has_values(starts):
            return [slice(0, last)]
        at_query = starts[:, first_query] if starts.shape[1] > 1 else starts[:, 0]
        first, end = (0, 0) if self._uniform else (int(at_query.min()), int(at_query.max()))
        end = min(end + self.global_tokens, near.start)
        return [slice(first, end), near] if first < end else [near]

    def block(self, start: int, stop: int, dtype: torch.dtype = torch.bool) -> tuple[list[slice], Tensor]:
        """The keys that queries start … stop may see, and their mask over these: boolean, or in another `dtype` what is
        added to scores (zero or minus infinity).
        """
        keys = self.reach(start, stop)
        if type(self.num_keys) is not int and dtype == torch.bool:
            return keys, self.rows(start, stop, keys)
        key: tuple[Any, ...] = (start, stop, dtype)
        if self._uniform and self.window is not None:  # then blocks at the same distance from their keys are the same
            distance = self.num_keys - self.num_queries + start - keys[-1].start
            key = (stop - start, distance, len(keys) > 1 and keys[0].stop, dtype)
        seen: Tensor | None = self.made.get(key)
        if seen is None:
            seen = self.rows(start, stop, keys)
            if dtype != torch.bool:
                seen = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            if (self._uniform and self.window is not None) or (self.window or self.num_queries) <= QUERY_BLOCK:
                self.made[key] = seen
        return keys, seen

    @property
    def _uniform(self) -> bool:
        """Whether all rows are alike, so that what a query sees depends on its distance from the first key alone."""
        given = (self.documents_BS, self.first_key_B, self.positions_S, self.whole)
        return all(tensor is None for tensor in given)

    @property
    def starts_BS(self) -> Tensor:
        """Where the document of each key begins, (B or 1, S or 1)."""
        if "starts" not in self.made:
            starts_BS, documents = torch.zeros(1, 1, dtype=torch.long, device=self.device), self.documents_BS
            if documents is not None:
                begins = torch.ones_like(documents, dtype=torch.bool)
                begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
                starts_BS = (torch.arange(documents.shape[1], device=self.device) * begins).cummax(dim=1).values
            if self.first_key_B is not None:
                starts_BS = starts_BS.maximum(self.first_key_B.unsqueeze(1))
            self.made["starts"] = starts_BS
        found: Tensor = self.made["starts"]
        return found


def check_window(window: int | None, global_tokens: int, causal: bool) -> None:
    """Raise a ConfigError where a window and the rest do not go together."""
    if window is not None and window < 1:
        raise ConfigError(f"window is {window}, but must be at least 1, or None for no window")
    if window is not None and not causal:
        raise ConfigError(f"window is {window}, but must be None where causal is false")
    if global_tokens < 0 or (global_tokens and window is None):
        right = "0 (none) or more" if window is not None else "0 where window is None"
        raise ConfigError(f"global_tokens is {global_tokens}, but must be {right}")
