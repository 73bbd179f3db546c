"""`sqat tokenizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

tokenizer = typer.Typer(help="Train a tokenizer, or see what one does.")


@tokenizer.command("train")
def train_tokenizer(
    data: Annotated[str, typer.Argument(help="Hub data set, folder, file, or `stories[:N]`.")],
    out: Annotated[Path, typer.Option(help="Folder for tokenizer.json.")],
    vocab_size: Annotated[int, typer.Option(help="Entries, the four special ones and 256 bytes among them.")] = 5000,
    field: Annotated[str, typer.Option(help="Column or key that holds the text.")] = "text",
    limit: Annotated[int | None, typer.Option(help="At most this many documents.")] = None,
) -> None:
    """Train a byte-level BPE tokenizer on any text source."""
    from sqat.checksums import write_checksums
    from sqat.cli.console import tokenising
    from sqat.data.text import open_source
    from sqat.data.tokenizer import TOKENIZER_FILES
    from sqat.data.tokenizer import train_tokenizer as train_on

    source = open_source(data, "train", field=field, limit=limit)
    with tokenising() as progress:
        result = train_on(source.documents(), vocab_size, progress=progress)
    path = result.save(out)
    write_checksums(out, TOKENIZER_FILES)
    typer.echo(f"{result.vocab_size:,} entries, written to {path}")


@tokenizer.command("encode")
def encode(
    path: Annotated[Path, typer.Argument(help="A tokenizer.json or its folder.")],
    text: Annotated[str, typer.Argument(help="What to encode.")],
) -> None:
    """Show the tokens of a text, one per line: the id and its text."""
    from sqat.data.tokenizer import Tokenizer

    loaded = Tokenizer.load(path)
    for token in loaded.encode(text):
        typer.echo(f"{token:6d}  {loaded.token_bytes(token).decode('utf-8', errors='backslashreplace')!r}")
