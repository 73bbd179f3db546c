"""Files from the Hugging Face Hub, and to it in one commit. Whatever fails there is a CheckpointError here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sqat.checksums import MANIFEST
from sqat.errors import CheckpointError, ConfigError
from sqat.hub.failures import FAILURES, explain
from sqat.hub.tokens import cause, usable_token

MAIN = "main"


def require_repo_id(repo_id: str | None, field: str) -> str:
    """The id of a repository, unless it cannot be one: a ConfigError naming `field` then."""
    if repo_id is None:
        raise ConfigError(f'{field} is None, but must be a repository such as "owner/name"')
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{field} is {repo_id!r}: {error}") from error
    return repo_id


def download(
    repo_id: str,
    names: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fetch files of a model repository into the client's cache, all of one commit; returns the folder they are in.

    Args:
        repo_id: "owner/name".
        names: files at the top of the repository, at least one.
        revision: branch, tag or commit; the main branch by default.
        token: for private repositories; by default the one that `hf auth login` stored.
        cache_dir, force_download, local_files_only: as `huggingface_hub.hf_hub_download` takes them.

    Raises:
        CheckpointError: no such repository, revision or file, no access, or no connection.
    """
    usable_token(token)
    for name in names:
        try:
            path = hf_hub_download(
                repo_id,
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        except FAILURES as error:
            problem = f"{repo_id!r} is no local folder, and its {name} cannot be had from the Hub"
            raise CheckpointError(f"{problem}: {explain(error, repo_id, token=token)}") from cause(error, token)
        folder = Path(path).parent
        revision = folder.name  # the commit, so that the next file is of the same
    return folder


def fetch(
    repo_id: str,
    folder: Path,
    patterns: Sequence[str],
    leave: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> None:
    """Fetch the files of a model repository that match `patterns` and none of `leave` into an existing, empty folder,
    all of one commit.

    Raises:
        CheckpointError: no such repository or revision, no access, or no connection.
    """
    usable_token(token)
    try:
        snapshot_download(
            repo_id,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(patterns),
            ignore_patterns=list(leave),
            token=token,
        )
    except FAILURES as error:
        at = "" if revision is None else f" at {revision!r}"
        problem = f"{repo_id!r}{at} cannot be had from the Hub"
        raise CheckpointError(f"{problem}: {explain(error, repo_id, token=token)}") from cause(error, token)


def read_text(repo_id: str, name: str, *, branch: str | None = None, token: str | bool | None = None) -> str | None:
    """A small text file of a model repository, as it is now; `None` where there is none. A branch that is not there
    yet has what the main branch has.

    Raises:
        CheckpointError: the Hub refused, or could not be reached; the file is no text.
    """
    usable_token(token)
    with tempfile.TemporaryDirectory(prefix="sqat-hub-") as folder:
        try:
            return Path(hf_hub_download(repo_id, name, revision=branch, token=token, cache_dir=folder)).read_text(
                encoding="utf-8"
            )
        except RevisionNotFoundError:
            return None if branch is None else read_text(repo_id, name, token=token)
        except (RemoteEntryNotFoundError, RepositoryNotFoundError):
            return None
        except FAILURES as error:
            problem = f"{name} of {repo_id!r} cannot be had from the Hub"
            raise CheckpointError(f"{problem}: {explain(error, repo_id, token=token)}") from cause(error, token)


def upload(
    folder: str | Path,
    repo_id: str,
    message: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Put the files of a folder into a model repository, made first if need be, in one commit; returns its address.

    The list of checksums stays here: the Hub keeps its own, and files are edited there.

    Raises:
        CheckpointError: the Hub refused, or could not be reached.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}
    return commit(files, repo_id, message, what=str(folder), private=private, token=token)


def commit(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    message: str,
    *,
    what: str,
    branch: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    replaces: Callable[[str], bool] | None = None,
) -> str:
    """Put files into a model repository, which is made first if need be, in one commit; returns its address.

    Args:
        files: by their names in the repository: where they are, or what is in them.
        what: what is uploaded, for messages.
        branch: made from the main branch where it is not there; default: the main branch.
        replaces: whether a file that is there already goes, where `files` has none of its name; default: all stay.

    Raises:
        CheckpointError: the Hub refused, or could not be reached.
    """
    usable_token(token)
    api = HfApi(token=token)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, content) for name, content in files.items()
    ]
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None and branch != MAIN:
            api.create_branch(repo, branch=branch, exist_ok=True)
        if replaces is not None:
            there = api.list_repo_files(repo, revision=branch)
            operations += [CommitOperationDelete(name) for name in there if name not in files and replaces(name)]
        # Not upload_folder, which may spread what belongs together over several commits.
        done = api.create_commit(repo, operations, commit_message=message, revision=branch)
        return str(done.commit_url)
    except FAILURES as error:
        problem = f"{what} cannot be uploaded to {repo_id!r}"
        raise CheckpointError(f"{problem}: {explain(error, repo_id, token=token)}") from cause(error, token)
