"""`sqat bench`."""

from __future__ import annotations

import json
import statistics
from typing import Annotated, Any

import typer

NOISY = 1.5  # the largest ratio of a round over the smallest, from which their median says little
COLUMNS = ("training", "evaluation", "prompt", "decoding")


def bench(
    models: Annotated[list[str] | None, typer.Argument(help="Presets, such as sqat-mm gqa-ref-micro.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Rows of a training step; default: 32, 256 on a GPU.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a row; default: the model's context.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 2048,
    rounds: Annotated[int, typer.Option(help="Measurements of each model.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the value of every round.")] = False,
) -> None:
    """How fast models train and generate on this machine, with random weights: under two minutes for two small models.

    In a clone of the repository, `make bench` compares with other libraries.
    """
    from sqat.bench import bench as measure
    from sqat.cli.console import console, errors, is_live

    names = list(dict.fromkeys(models or ["sqat-mm"]))
    with errors.status("measuring ...") as status:
        say = status.update if is_live(errors) else lambda text: errors.print(text)
        found = measure(
            names, device=device, batch_size=batch_size, context=context, prompt=prompt, rounds=rounds, progress=say
        )
    if as_json:
        typer.echo(json.dumps(found))
    else:
        console.print(_table(found["models"]))


def _table(models: dict[str, dict[str, Any]]) -> Any:
    """Medians over the rounds; with several models, also the ratios to the first, taken within each round."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("tokens/s", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    first = next(iter(models.values()))
    for name, measured in models.items():
        cells = [_cell(measured[what], first[what], compare=measured is not first) for what in COLUMNS]
        table.add_row(name, *cells)
    return table


def _cell(rates: list[float], first: list[float], *, compare: bool) -> str:
    text = f"{statistics.median(rates):,.0f}"
    if compare:
        ratios = [rate / base for rate, base in zip(rates, first, strict=True)]
        noisy = ", noisy" if max(ratios) > NOISY * min(ratios) else ""
        text += f" ({statistics.median(ratios):.2f}×{noisy})"
    return text
