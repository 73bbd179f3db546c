"""Models from the Hub: only a model's files, checked, in a folder that is there whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqat.checkpoint import write_folder
from sqat.errors import CheckpointError, ConfigError, SqatError
from sqat.hub.model_folder import NOT_OF_IT, PATTERNS, check_model, form_of
from sqat.hub.transfer import fetch, require_repo_id

_CLIENTS_OWN = ".cache"  # what the client leaves in a folder that it writes to


def pull(
    repo_id: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    force: bool = False,
    token: str | None = None,
) -> Path:
    """Fetch a model into a folder, which this returns; it is loaded once, as a check, before it is put there.

    Fetched are configuration, safetensors, tokenizer, modelling code (which is not run) and card, at the repository's
    top: no pickles, no optimizer state, no other checkpoints.

    Args:
        repo_id: a model of this package, in any form, or a stock one that `sqat convert` knows.
        out: default: the repository's name, in the working folder.
        revision: branch, tag or commit; default: the main branch.
        force: replace `out`, whole, if it holds another model.
        token: default: HF_TOKEN, or the one that `hf auth login` stored; public repositories need none.

    Raises:
        ConfigError: `out` holds something, and `force` is not set or it is no model.
        CheckpointError: no such repository or revision, no access, no connection, or no model there that can be loaded.
    """
    require_repo_id(repo_id, "repository")
    folder = Path(repo_id.rpartition("/")[2] if out is None else out)
    _require_room(folder, force)
    with write_folder(folder) as temporary:
        fetch(repo_id, temporary, PATTERNS, NOT_OF_IT, revision=revision, token=token)
        shutil.rmtree(temporary / _CLIENTS_OWN, ignore_errors=True)
        try:
            check_model(temporary)
        except SqatError as error:
            reason = str(error).replace(str(temporary), repo_id)
            raise CheckpointError(f"{repo_id!r} holds no model that can be used: {reason}") from error
    return folder


def _require_room(folder: Path, force: bool) -> None:
    """Raise a ConfigError unless `folder` is not there, or empty, or a model that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out is {folder}, a file, but must be a folder, or not exist yet")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise ConfigError(
            f"out is {folder}, which is not empty: choose a new or an empty folder, or --force to replace a model"
        )
    try:
        form_of(folder)
    except CheckpointError as error:
        raise ConfigError(
            f"out is {folder}, which --force does not replace, since it holds no model: {error}"
        ) from error
