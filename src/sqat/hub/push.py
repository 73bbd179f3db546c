"""Models to the Hub: checked, with a card, in one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sqat.checkpoint import read_config
from sqat.errors import ConfigError
from sqat.hub.model_folder import ModelFolder, belongs, check_model, form_of, model_files
from sqat.hub.tokens import require_token
from sqat.hub.transfer import commit, read_text, require_repo_id
from sqat.model_card import CARD_FILE, Known, model_card, read_origin, stock_card, with_known
from sqat.model_card.upkeep import for_form, is_edited, with_metadata_of
from sqat.train.checkpoints import find_model

MESSAGE = "Upload model"
ORIGINAL = "original"


def push(
    folder: str | Path,
    repo_id: str,
    *,
    to: str | None = None,
    branch: str | None = None,
    message: str | None = None,
    private: bool | None = None,
    known: Known | None = None,
    token: str | None = None,
) -> str:
    """Upload a model with its tokenizer and card in one commit; returns the commit's address.

    What the repository holds of an earlier model goes in the same commit; other files stay. The optimizer's state and a
    run's logs are never uploaded. A card that somebody has written or changed, the README.md beside the model or else
    the repository's, stays; `known` changes its metadata alone. Otherwise one is written for the upload.

    Args:
        folder: a run (its best checkpoint is meant), a checkpoint of either layout, or what `sqat export` and `sqat
            convert` write as one.
        repo_id: "owner/name"; made first if need be.
        to: "native" or "stock" to export first, as :func:`sqat.hf.export.export` does, "original" for RxNN's layout;
            `None`: as it is.
        branch: made from the main branch where it is not there; default: the main branch.
        message: of the commit.
        private: of a new repository; `None`: as its owner's settings have it.
        known: what the card cannot know by itself.
        token: default: HF_TOKEN, or the one that `hf auth login` stored.

    Raises:
        ConfigError: an argument that cannot be; nobody is logged in; a model that the form `to` cannot hold.
        CheckpointError: no model there, or one that cannot be loaded; the Hub refused, or could not be reached.
    """
    require_repo_id(repo_id, "repository")
    if "/" not in repo_id:
        raise ConfigError(f"repository is {repo_id!r}, but must be owner/name")
    if message is not None and not message.strip():
        raise ConfigError("message is empty, but must say something")
    for name in ("model.gguf", "model.onnx"):
        if (Path(folder) / name).is_file():
            raise ConfigError(
                f"{folder} holds {name}, which can only be uploaded as it is: `hf upload {repo_id} {folder}`"
            )
    require_token(token)
    found = find_model(folder)
    with tempfile.TemporaryDirectory(prefix="sqat-push-") as temporary:
        source = found if to is None else _converted(found, to, Path(temporary) / "model")
        files: dict[str, Path | bytes] = {name: source / name for name in model_files(source)}
        model = check_model(source)
        there = read_text(repo_id, CARD_FILE, branch=branch, token=token)
        files[CARD_FILE] = _card(model, found, known or Known(), repo_id, there).encode()
        return commit(
            files,
            repo_id,
            message or MESSAGE,
            what=str(found),
            branch=branch,
            private=private,
            token=token,
            replaces=belongs,
        )


def _converted(checkpoint: Path, to: str, out: Path) -> Path:
    """The checkpoint in another form, in a new folder."""
    from sqat.hf.export import export
    from sqat.layout import write_layout

    forms = ("native", "stock", ORIGINAL)
    if to not in forms:
        raise ConfigError(f"to is {to!r}, but must be one of {', '.join(forms)}")
    if to == ORIGINAL:
        write_layout(checkpoint, out, "rxnn")
    else:
        export(checkpoint, out, to)
    return out


def _card(model: ModelFolder, checkpoint: Path, known: Known, repo_id: str, there: str | None) -> str:
    """Somebody's own card, the one beside the checkpoint or else the Hub's (`there`), for the model's form; without
    either what was written beside the model, or a new one of what is on record of `checkpoint`, which the model was or
    is, with the metadata of the one that it replaces.
    """
    path = checkpoint / CARD_FILE
    beside = path.read_text(encoding="utf-8") if path.is_file() else None
    as_it_is = model.folder == checkpoint
    for card in (beside, there):
        if card is not None and is_edited(card):
            if not (as_it_is and card is beside):
                card = for_form(card, model.form, repo_id, tokenizer=model.tokenizer)
            return with_known(card, known)
    if beside is not None and as_it_is:
        return with_known(beside, known)
    result = _new_card(model, checkpoint, known, repo_id)
    for card in (beside, there):
        if card is not None:
            result = with_metadata_of(card, result)
    return result


def _new_card(model: ModelFolder, checkpoint: Path, known: Known, repo_id: str) -> str:
    facts: dict[str, Any] = {
        "origin": read_origin(checkpoint),
        "known": known,
        "repo_id": repo_id,
        "tokenizer": model.tokenizer,
    }
    if form_of(checkpoint) in ("stock", "mixed"):
        return stock_card(model.config, **facts)
    return model_card(read_config(checkpoint)[0], model.form, **facts)
