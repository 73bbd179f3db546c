"""`sqat export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of either layout, or a run's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    to: Annotated[
        str,
        typer.Option(
            help="native: with its modelling code; stock: Llama, Mistral or Mixtral, whichever it is; "
            "gguf: for llama.cpp; onnx: for ONNX runtimes."
        ),
    ] = "native",
) -> None:
    """Write a checkpoint in a form that runs without this package."""
    import logging

    from transformers.utils.logging import disable_progress_bar

    from sqat.hf.export import export as write

    disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here needs
    typer.echo(f"{checkpoint} written to {out} as {write(checkpoint, out, to)}")
