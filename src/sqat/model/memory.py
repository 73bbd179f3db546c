"""Whether a model's weights can be held at all, before they are allocated."""

from __future__ import annotations

import os

from sqat.config import ModelConfig
from sqat.cost import parameters
from sqat.errors import ConfigError

BYTES = 4  # of a weight, in float32


def require_memory(config: ModelConfig) -> None:
    """Raise a ConfigError, naming the fields that ask for most, where the weights alone are larger than the machine's
    memory: an allocator may grant a petabyte, and the process is killed when it is touched.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = parameters(config)
    if count.total * BYTES <= available:
        return
    shares = {
        ("vocab_size", "hidden_size"): count.embedding,
        ("num_layers", "hidden_size", "num_query_heads", "num_kv_heads", "head_dim"): count.attention,
        ("num_layers", "hidden_size", "intermediate_size", "num_experts"): count.feedforward,
    }
    fields = max(shares, key=lambda names: shares[names])
    values = ", ".join(f"{name} {getattr(config, name):,}" for name in fields)
    raise ConfigError(
        f"ModelConfig asks for {count.total:,} parameters, {in_bytes(count.total * BYTES)} of weights, most of it by "
        f"{values}; but this machine has {in_bytes(available)} of memory"
    )


def in_bytes(count: float) -> str:
    """Bytes for people: "3.6 PB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"
