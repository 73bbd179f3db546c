"""`sqat info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sqat.config import ModelConfig


def info(
    model: Annotated[
        str | None, typer.Argument(help="A preset, a checkpoint or a run's folder; without it, all presets.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens at which operations are counted; default: the model's context.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, by name.")] = False,
) -> None:
    """Show shapes, parameters, operations per token, cache size, and how much cheaper attention is."""
    if as_json:
        from sqat.variants import PRESETS

        names = PRESETS if model is None else [model]
        typer.echo(json.dumps({name: as_record(_config(name), context) for name in names}))
    elif model is None:
        _print_presets(context)
    else:
        _print_model(model, context)


def _print_presets(context: int | None) -> None:
    from rich.table import Table

    from sqat.cli.console import console
    from sqat.variants import PRESETS, preset, variant_name

    table = Table("preset", "variant", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("Hq/Hkv/H", "params", "context", "MFLOP/tok", "KV B/tok", "H/Hq"):
        table.add_column(heading, justify="right")
    for column in table.columns:
        column.no_wrap = True
    for name in PRESETS:
        config = preset(name)
        record = as_record(config, context)
        window = "" if config.window is None else f" w{config.window}"
        table.add_row(
            name,
            f"{variant_name(config)}{window}{f' g{config.global_tokens}' if config.global_tokens else ''}",
            f"{config.num_query_heads}/{config.num_kv_heads}/{config.num_heads}",
            f"{record['parameters']['total'] / 1e6:.2f} M",
            f"{record['context']:,}",
            f"{record['flops_per_token']['total'] / 1e6:.2f}",
            f"{record['kv_bytes_per_token']:,}",
            f"{record['attention_speedup']:.3g}",
        )
    console.print(table)


def _print_model(model: str, context: int | None) -> None:
    from rich.table import Table

    from sqat.cli.console import console

    table = Table(box=None, show_header=False)
    for name, value in describe(_config(model), context).items():
        table.add_row(name, value)
    console.print(f"[bold]{model}[/bold]")
    console.print(table)


def as_record(config: ModelConfig, context: int | None = None) -> dict[str, Any]:
    """The configuration and its cost, as numbers."""
    from sqat.cost import attention_speedup, flops_per_token, kv_bytes_per_token, parameters
    from sqat.variants import attention_name

    flops = flops_per_token(config, context)
    return {
        "attention": attention_name(config),
        "num_heads": config.num_heads,
        "attention_speedup": attention_speedup(config),
        "parameters": parameters(config)._asdict(),
        "context": context or config.context_length,
        "flops_per_token": {**flops._asdict(), "total": flops.total},
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "config": config.to_dict(),
    }


def describe(config: ModelConfig, context: int | None = None) -> dict[str, str]:
    """The same in words, by name."""
    from sqat.cost import kv_bytes

    record = as_record(config, context)
    count, flops = record["parameters"], record["flops_per_token"]
    share = "H/Hq" if config.num_query_heads >= config.num_kv_heads else "H/Hkv"
    experts = f"{config.num_experts} experts, {config.experts_per_token} per token, " if config.is_moe else ""
    heads = f"{config.num_query_heads} query, {config.num_kv_heads} key/value heads of {config.head_dim}"
    vocabulary = f"vocabulary {config.vocab_size:,}, context {config.context_length:,}"
    bound = ""
    if config.window is not None:
        share += ", at equal windows,"
        bound = f", {kv_bytes(config, config.window + config.global_tokens):,} at most"
    return {
        "attention": f"{record['attention']}: {heads}",
        "full attention has": f"{config.num_heads} heads; {share} = {record['attention_speedup']:.3g} times the "
        "attention cost of this model",
        "shape": f"{config.num_layers} layers of width {config.hidden_size:,}, {vocabulary}",
        "feed-forward": f"{experts}{'gated ' if config.gated else ''}{config.activation}, "
        f"hidden {config.intermediate_size:,}",
        "parameters": f"{count['total']:,} ({count['active']:,} active)",
        f"forward at {record['context']:,}": f"{flops['total'] / 1e6:.2f} MFLOP per token "
        f"({flops['attention'] / flops['total']:.0%} scores and weighted sums)",
        "key/value cache": f"{record['kv_bytes_per_token']:,} bytes per token (16-bit){bound}",
    }


def _config(model: str) -> ModelConfig:
    from sqat.variants import preset

    if Path(model).exists():
        from sqat.checkpoint import read_config
        from sqat.train.checkpoints import find_model

        return read_config(find_model(model))[0]
    return preset(model)
