"""Upload models to the Hub with a model card, and download them, checked and complete."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download

from sqat import model_card as cards
from sqat.checkpoint import load_model, read_config, write_folder
from sqat.checkpoint.model_files import CONFIG_FILE
from sqat.convert.files import TOKENIZER_FILES, read_model
from sqat.convert.files import read_config as read_stock_config
from sqat.convert.plan import described
from sqat.convert.tokenizer import StockTokenizer
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer, require_room
from sqat.errors import CheckpointError, ConfigError, SqatError
from sqat.folders import require_free
from sqat.formats import detect, export
from sqat.hub import commit, hub_errors, read_text, require_repo_id, require_token
from sqat.model_card import Known
from sqat.train.checkpoints import find_model
from sqat.train.state import TENSORS_FILE

UPLOADED = ("transformers", "stock", "rxnn", "sqat")  # the forms that `push` writes
CODE = ("configuration_sqat.py", "modeling_sqat.py", "modeling_mixed_heads.py")

# What belongs to a model of any form, at the top of its folder. Pickles do not.
PATTERNS = (
    *(CONFIG_FILE, "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *(*TOKENIZER_FILES, *CODE, cards.RECORD_FILE, cards.CARD_FILE),
)
NOT_OF_IT = (TENSORS_FILE, "*/*")  # the optimizer's state; folders, in which repositories keep other checkpoints


class CheckedModel(NamedTuple):
    """A model that was loaded as a check, and what that showed."""

    form: str
    config: Any  # ModelConfig, or PreTrainedConfig for stock models
    tokenizer: bool


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
    """Upload a model with its tokenizer and model card to the Hugging Face Hub, in one commit; returns the commit's
    URL.

    The commit also deletes an earlier model's files from the repository; other files stay. Optimizer state and logs are
    never uploaded. A README.md that a person wrote or edited, beside the model or in the repository, is kept, and
    `known` changes only its metadata. Otherwise a card is generated.

    Args:
        folder: a run (its best checkpoint is used), a checkpoint of either layout, or a folder that `sqat export` or
            `sqat convert` wrote.
        repo_id: "owner/name"; created if needed.
        to: "transformers", "stock", "rxnn" or "sqat" to export first, as :func:`sqat.formats.export` does; `None`:
            as it is.
        branch: created from the main branch if needed; by default the main branch.
        message: the commit message.
        private: visibility of a new repository; None for the owner's default.
        known: what only you know about the model, such as its license.
        token: by default HF_TOKEN, or the one that `hf auth login` stored.

    Raises:
        ConfigError: an unusable argument, no token, or a model that the form `to` cannot hold.
        CheckpointError: there is no model, or it cannot be loaded; the Hub refused, or could not be reached.
    """
    require_repo_id(repo_id, "repository")
    if "/" not in repo_id:
        raise ConfigError(f"repository is {repo_id!r}, but must be owner/name")
    if any((Path(folder) / name).is_file() for name in ("model.gguf", "model.onnx")):
        raise ConfigError(f"{folder} holds GGUF or ONNX, to be uploaded as it is: `hf upload {repo_id} {folder}`")
    if to not in (None, *UPLOADED):
        raise ConfigError(f"to is {to!r}, but must be one of {', '.join(UPLOADED)}")
    require_token(token)
    found = find_model(folder)
    with tempfile.TemporaryDirectory(prefix="sqat-push-") as temporary:
        source = found
        if to is not None:
            source = Path(temporary) / "model"
            export(found, source, to)
        paths = sorted(path for path in source.iterdir() if path.is_file() and belongs(path.name))
        files: dict[str, Path | bytes] = {path.name: path for path in paths}
        model = check_model(source)
        there = read_text(repo_id, cards.CARD_FILE, branch=branch, token=token)
        files[cards.CARD_FILE] = _card(model, found, known or Known(), repo_id, there, as_it_is=to is None).encode()
        options: dict[str, Any] = {"branch": branch, "private": private, "token": token, "replaces": belongs}
        return commit(files, repo_id, message or "Upload model", what=str(found), **options)


def _card(
    model: CheckedModel, checkpoint: Path, known: Known, repo_id: str, there: str | None, *, as_it_is: bool
) -> str:
    """The card to upload with `model`, which is `checkpoint` itself or was exported from it: one that a person wrote or
    edited, beside the checkpoint or else on the Hub (`there`); the one beside a model that is uploaded as it is; or a
    new one from what is on record of `checkpoint`.
    """
    path = checkpoint / cards.CARD_FILE
    beside = path.read_text(encoding="utf-8") if path.is_file() else None

    def new() -> str:
        if beside is not None and as_it_is:
            return cards.with_metadata(beside, known.metadata)
        origin = cards.read_origin(checkpoint)
        if as_it_is and model.form in ("stock", "mixed"):
            facts: Any = described(model.config, (origin.conversion or {}).get("context_length"))
        else:
            facts = read_config(checkpoint)[0]
        about: dict[str, Any] = {"origin": origin, "known": known, "repo_id": repo_id}
        return cards.model_card(facts, model.form, tokenizer=model.tokenizer, **about)

    return cards.kept_or_new([card for card in (beside, there) if card is not None], known, new)


def pull(
    repo_id: str,
    out: str | Path | None = None,
    *,
    revision: str | None = None,
    force: bool = False,
    token: str | None = None,
) -> Path:
    """Download a model from the Hugging Face Hub; returns its folder. It is loaded once, as a check, before the folder
    appears.

    Downloads the configuration, safetensors, tokenizer, modelling code (which is not run) and card from the
    repository's top folder; never pickles, optimizer state or other checkpoints.

    Args:
        repo_id: a model of this package, in any form, or a stock one that `sqat convert` knows.
        out: by default the repository's name, in the working folder.
        revision: branch, tag or commit; by default the main branch.
        force: replace `out` if it holds another model.
        token: by default HF_TOKEN, or the one that `hf auth login` stored; public repositories need none.

    Raises:
        ConfigError: `out` is not empty, and `force` is not set or it does not hold a model.
        CheckpointError: no such repository or revision, no access, no connection, or no model that can be loaded.
    """
    require_repo_id(repo_id, "repository")
    folder = Path(repo_id.rpartition("/")[2] if out is None else out).expanduser()
    replaced = ""
    if force:
        with suppress(CheckpointError):
            replaced = detect(folder)
    if not replaced:  # a folder of anything but a model is not replaced
        require_free(folder, "out")
    with write_folder(folder) as temporary:
        at = "" if revision is None else f" at {revision!r}"
        with hub_errors(f"{repo_id!r}{at} cannot be had from the Hub", repo_id, token):
            snapshot_download(
                repo_id,
                revision=revision,
                local_dir=temporary,
                allow_patterns=[*PATTERNS],
                ignore_patterns=[*NOT_OF_IT],
                token=token,
            )
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the client's own
        try:
            check_model(temporary)
        except SqatError as error:
            reason = str(error).replace(str(temporary), repo_id)
            raise CheckpointError(f"{repo_id!r} holds no model that can be used: {reason}") from error
    return folder


def belongs(name: str) -> bool:
    """Whether a file of this name, relative to a folder, is part of a model there."""
    return not any(fnmatchcase(name, left) for left in NOT_OF_IT) and any(fnmatchcase(name, p) for p in PATTERNS)


def check_model(folder: Path) -> CheckedModel:
    """Load the model in a folder, and its tokenizer if there is one.

    Raises:
        CheckpointError, ConfigError, DataError: it cannot be loaded; the message says why.
    """
    form = detect(folder)
    if form in ("stock", "mixed"):
        read_model(folder)
        if has_tokenizer := any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
            StockTokenizer(folder)
        return CheckedModel(form, read_stock_config(folder), has_tokenizer)
    config = load_model(folder, dtype=None).config
    if has_tokenizer := (folder / TOKENIZER_FILE).is_file():
        require_room(Tokenizer.load(folder), config.vocab_size)
    return CheckedModel(form, config, has_tokenizer)
