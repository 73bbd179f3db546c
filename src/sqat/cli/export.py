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
    typer.echo(f"{checkpoint} written to {out} as {write(checkpoint, out, to)}")
