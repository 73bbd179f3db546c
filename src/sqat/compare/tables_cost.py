"""The report's tables of what the variants' sizes say: computed, apart from memory and experts' load."""

from __future__ import annotations

import statistics

from sqat.compare.budget import TRAINING
from sqat.compare.card_figures import published
from sqat.compare.results import Comparison
from sqat.compare.text_table import TextTable
from sqat.config import ModelConfig
from sqat.cost import flops_per_token, kv_bytes, kv_bytes_per_token, parameters

LENGTHS = (256, 1024, 4096, 32768, 131072)
STREAM = 32768  # tokens of the stream whose cache is told


def sizes(comparison: Comparison) -> TextTable:
    """Parameters, cache, and where there are runs: memory, and what the budget bought."""
    theirs = published(comparison.plan)
    told = {name: m for name, (*_, m) in theirs.figures.items() if m is not None} if theirs else {}
    columns = ["variant", "query heads", "key/value heads", "parameters", *([theirs.whose] if theirs and told else [])]
    columns += ["active", "cache bytes/token", f"cache of {STREAM:,} tokens, MB"]
    columns += ["peak memory, MB", "steps", "tokens", "FLOPs"] if comparison.runs else []
    rows = []
    for name, model in comparison.models.items():
        counted = parameters(model)
        row = [name, str(model.num_query_heads), str(model.num_kv_heads), f"{counted.total / 1e6:.2f} M"]
        if told:
            row.append(f"{told[name]:.2f} M" if name in told else "–")
        row += [f"{counted.active / 1e6:.2f} M", f"{kv_bytes_per_token(model):,}"]
        row.append(f"{kv_bytes(model, STREAM) / 1e6:,.3g}")
        rows.append(row + (_bought(comparison, name) if comparison.runs else []))
    notes = ["cache in 16-bit values; a window bounds it"]
    if comparison.runs:
        notes.append("peak memory of the run's process, median over seeds; on a GPU of its tensors")
    return TextTable("Size and budget" if comparison.runs else "Size", columns, rows, notes)


def _bought(comparison: Comparison, name: str) -> list[str]:
    run = comparison.of(name)[0]
    peak = statistics.median(run["peak_bytes"] for run in comparison.of(name))
    return [f"{peak / 1e6:,.0f}", f"{run['steps']:,}", f"{run['tokens'] / 1e6:.3g} M", f"{run['flops']:.3g}"]


def complexity(comparison: Comparison) -> TextTable:
    """The card's formulas with the numbers filled in, and operations counted."""
    rows = []
    for name, model in comparison.models.items():
        counts = [f"{flops_per_token(model, length).total / 1e6:,.1f}" for length in LENGTHS]
        rows.append([name, _formula(model), f"{model.num_heads / model.num_score_heads:.3g}", *counts])
    columns = ["variant", "the card's formula", "H/Hq", *(f"{length:,}" for length in LENGTHS)]
    notes = [
        "formula: O(N·(d/heads·query heads) · N·(d/heads·key/value heads)); a window bounds a token's keys",
        "H/Hq: how many times cheaper scores and weighted sums are than full attention's (H/Hkv where Hkv is more)",
        "right: millions of operations of one token's forward pass, whole model, by context length",
        "the card multiplies query and key/value widths; scores and sums cost query heads alone (arXiv 2510.01817)",
    ]
    return TextTable("Complexity", columns, rows, notes)


def _formula(model: ModelConfig) -> str:
    """Reverse SQA repeats its queries, so that there are as many of their heads as of the others."""
    width, kv = model.num_score_heads * model.head_dim, model.num_kv_heads * model.head_dim
    keys = "N" if model.window is None else f"min(N, {model.window + model.global_tokens})"
    return f"O(N·{width} · {keys}·{kv})"


def operations(comparison: Comparison) -> TextTable:
    """Where a token's operations go, at the model's own context."""
    models = comparison.models
    base = flops_per_token(models[comparison.plan.reference]).total if comparison.plan.reference in models else None
    rows = []
    for name, model in models.items():
        cost = flops_per_token(model)
        parts = [f"{part / 1e6:,.3f}" for part in (cost.projections, cost.attention, cost.feedforward, cost.head)]
        share = f"{cost.total / base:.3f}" if base else "–"
        rows.append([name, *parts, f"{cost.total / 1e6:,.2f}", share, f"{TRAINING * cost.total / 1e6:,.1f}"])
    context = next(iter(models.values())).context_length
    columns = ["variant", "projections", "scores and sums", "feed-forward", "head", "forward"]
    columns += [f"against {comparison.plan.reference}", "training"]
    notes = [f"millions of operations of one token, by cost.py, in a sequence of {context:,}; a multiply-add is two"]
    return TextTable("Operations", columns, rows, notes)


def router(comparison: Comparison) -> TextTable | None:
    """How evenly experts were chosen."""
    rows = []
    for name in comparison.variants:
        loads = [run["evaluation"].get("router_load") for run in comparison.of(name)]
        if not loads or not all(loads):
            return None
        shares = [share * len(layer) for load in loads for layer in load for share in layer]
        entropy = statistics.fmean(run["evaluation"]["router_entropy"] for run in comparison.of(name))
        rows.append([name, f"{max(shares):.2f}", f"{min(shares):.2f}", f"{entropy:.3f}"])
    notes = ["load relative to an even share, over all layers and seeds; entropy in nats per token"]
    return TextTable("Experts", ["variant", "busiest", "least busy", "router entropy"], rows, notes)
