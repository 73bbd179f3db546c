"""What a model costs beside others of its size, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqat.config import ModelConfig
from sqat.cost import flops_per_token, kv_bytes_per_token, parameters
from sqat.errors import ConfigError
from sqat.model_card.text import table
from sqat.variants import VARIANTS, head_counts

REFERENCES = ("mha", "gqa")


class Cost(NamedTuple):
    """One model's costs. A multiply-add is two operations."""

    name: str
    query_heads: int
    kv_heads: int
    parameters: int
    active: int  # without the experts that a token does not visit
    flops: int  # per token, forward, averaged over a causal sequence
    attention_flops: int  # of these, scores and weighted sums
    kv_bytes: int  # the cache's growth per token, 16-bit values


def model_costs(config: ModelConfig) -> list[Cost]:
    """This model's, and those of multi-head and grouped query attention in a model of otherwise the same shape."""
    own = (config.num_query_heads, config.num_kv_heads)
    costs = [_cost("this model", config)]
    for variant in REFERENCES:
        try:
            query_heads, kv_heads = head_counts(variant, config.num_heads)
        except ConfigError:  # heads that cannot be shared out so
            continue
        if (query_heads, kv_heads) != own:
            reference = config.replace(num_query_heads=query_heads, num_kv_heads=kv_heads)
            costs.append(_cost(f"{VARIANTS[variant].meaning} ({variant.upper()})", reference))
    return costs


def _cost(name: str, config: ModelConfig) -> Cost:
    count, flops = parameters(config), flops_per_token(config)
    return Cost(
        name,
        config.num_query_heads,
        config.num_kv_heads,
        count.total,
        count.active,
        flops.total,
        flops.attention,
        kv_bytes_per_token(config),
    )


def recorded_cost(name: str, costs: dict[str, Any]) -> Cost:
    """The fields of :class:`sqat.convert.Costs` under a name."""
    return Cost(
        name,
        costs["query_heads"],
        costs["kv_heads"],
        costs["parameters"],
        costs["active_parameters"],
        costs["flops_per_token"],
        costs["attention_flops_per_token"],
        costs["kv_bytes_per_token"],
    )


def cost_section(costs: Sequence[Cost], context_length: int) -> str:
    """The table, and what its columns mean; `context_length` is what operations are averaged over."""
    rows = [
        (
            cost.name,
            cost.query_heads,
            cost.kv_heads,
            f"{cost.parameters:,}",
            f"{cost.active:,}",
            f"{cost.flops / 1e6:,.2f} M",
            f"{cost.attention_flops / 1e6:,.2f} M",
            f"{cost.kv_bytes:,}",
        )
        for cost in costs
    ]
    heading = ("", "query heads", "key/value heads", "parameters", "active", "FLOPs/token", "of these attention", "KV")
    return (
        f"{table(heading, rows)}\n\n"
        "Active parameters leave out experts that a token does not visit. FLOPs are those of a forward pass, averaged "
        f"over a causal sequence of {context_length:,} tokens, a multiply-add counted as two; attention's are scores "
        "and weighted sums. KV is what the key/value cache grows by, in bytes per token, with 16-bit values. All are "
        "computed from the configuration, not measured."
    )
