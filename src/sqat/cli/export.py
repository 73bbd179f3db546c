"""`sqat export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = (
    "sqat: this package's own layout; rxnn: RxNN's; transformers: with modelling code beside the weights; stock: the "
    "Llama, Mistral or Mixtral that it is; gguf: for llama.cpp; onnx: for ONNX runtimes."
)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="MODEL", help="A checkpoint, or a run's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    to: Annotated[str, typer.Option(help=HELP)] = "transformers",
) -> None:
    """Write a model in another form."""
    import logging

    from transformers.utils.logging import disable_progress_bar

    from sqat.formats import export as write

    disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about packages that are not needed here
    typer.echo(f"{checkpoint} written to {out} as {write(checkpoint, out, current_name(to))}")


def current_name(to: str) -> str:
    """The name of a form; an old name works, with a hint on stderr."""
    from sqat.formats import FORMER_NAMES

    if (name := FORMER_NAMES.get(to, to)) != to:
        typer.echo(f"hint: --to {to} is now called --to {name}; the old name goes with the next version", err=True)
    return name
