"""`sqat push` and `sqat pull`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="A run (its best checkpoint), a checkpoint, or an exported model.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created if need be.")],
    to: Annotated[
        str | None,
        typer.Option(help="Export first: transformers, stock, rxnn or sqat. Default: as it is."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    branch: Annotated[str | None, typer.Option(help="Created if need be; default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="For the card: the Hub's identifier, such as apache-2.0.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="For the card: Hub id of training data; may be given several times.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="For the card: Hub id of the model that this one was made from.")
    ] = None,
) -> None:
    """Upload a model with a model card to the Hugging Face Hub, after loading it once as a check.

    The token comes from HF_TOKEN or `hf auth login`. A README.md beside the model is used as its card.
    """
    from sqat.model_card import Known
    from sqat.sharing import push as upload

    _quiet_unless_watched()
    known = Known(license=license_, datasets=tuple(dataset or ()), base_model=base_model)
    address = upload(folder, repo, to=to, branch=branch, message=message, private=private or None, known=known)
    typer.echo(f"{folder} uploaded: {address}")
    for option, value, meaning in (("--license", license_, "licence"), ("--dataset", dataset, "training data")):
        if not value:
            typer.echo(f"note: {option} was not given, so this upload set no {meaning} in the card", err=True)


def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="New or empty; default: NAME.", show_default=False)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: main.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that DIR holds, whole.")] = False,
) -> None:
    """Download a model from the Hugging Face Hub: only its own files, checked, and all of them or none."""
    from sqat.sharing import pull as fetch

    _quiet_unless_watched()
    result = fetch(repo, folder, revision=revision, force=force)
    typer.echo(f"{repo} written to {result}")


def _quiet_unless_watched() -> None:
    """Show progress bars only on terminals."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()
