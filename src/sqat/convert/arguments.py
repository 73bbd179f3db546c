"""Checks of what callers pass to the functions of this package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sqat.convert.architectures import Heads
from sqat.convert.heads import Groups
from sqat.errors import ConfigError


def require_rows(rows: Tensor, name: str, vocab_size: int, *, least: int) -> None:
    """Raise a ConfigError unless `rows` is (rows, tokens) of token ids below `vocab_size`, at least one row of `least`
    tokens.
    """
    if not isinstance(rows, Tensor):
        raise ConfigError(f"{name} is of type {type(rows).__name__}, but must be a tensor of token ids (rows, tokens)")
    if rows.dim() != 2 or not len(rows) or rows.shape[1] < least:
        raise ConfigError(
            f"{name} has the shape {tuple(rows.shape)}, but must be (rows, tokens) with at least one row of {least} "
            f"token{'s' if least > 1 else ''}"
        )
    if rows.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"{name} holds {rows.dtype}, but must hold token ids as int64")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= vocab_size:
        raise ConfigError(
            f"{name} holds token {low if low < 0 else high}, but must hold ids from 0 to {vocab_size - 1}: the model's "
            f"vocab_size is {vocab_size}"
        )


def require_groups(groups: Sequence[Groups], old: Heads, by_layer: Sequence[Heads]) -> None:
    """Raise a ConfigError unless `groups` names, for each layer that changes, as many groups as it shall have query
    heads, each of old heads that share what becomes its key/value head.
    """
    if len(groups) != len(by_layer):
        raise ConfigError(f"groups is of {len(groups)} layers, but must be of the model's {len(by_layer)}")
    for layer, (merged, new) in enumerate(zip(groups, by_layer, strict=True)):
        if new == old:
            continue
        if len(merged) != new.query:
            raise ConfigError(
                f"groups[{layer}] holds {len(merged)} groups, but must hold {new.query}, the plan's query heads"
            )
        pool, each = old.query // new.kv, new.query // new.kv
        for head, group in enumerate(merged):
            first = head // each * pool
            if not group or not set(group) <= set(range(first, first + pool)):
                raise ConfigError(
                    f"groups[{layer}][{head}] is {tuple(group)}, but must be one or more of the heads {first} to "
                    f"{first + pool - 1}, which share its key/value head"
                )
