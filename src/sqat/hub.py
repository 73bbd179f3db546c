"""Files from the Hugging Face Hub, and to it in one commit. Every failure is a CheckpointError that says what to do.

No access token is ever shown. The Hub's client takes one from $HF_TOKEN, from the file that `hf auth login` writes, or
as an argument. Its own errors do not show it, but those of the HTTP library below do if a token cannot be sent
("Illegal header value b'Bearer …'"), so :func:`usable_token` refuses such a token before every request.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub as client
from huggingface_hub import constants, errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sqat.checksums import MANIFEST
from sqat.errors import CheckpointError, ConfigError, SqatError

HTTPError = errors.HTTPError  # type: ignore[attr-defined]

# What the client raises: its HTTP library's errors, OSError for connections and files, RuntimeError from its upload
# threads, ValueError for ids and for answers that it cannot read.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def require_repo_id(repo_id: str | None, field: str) -> str:
    """The id of a repository. Raises a ConfigError naming `field` if it cannot be one."""
    if repo_id is None:
        raise ConfigError(f'{field} is None, but must be a repository such as "owner/name"')
    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise ConfigError(f"{field} is {repo_id!r}: {error}") from error
    return repo_id


def download(
    repo_id: str, names: Sequence[str], *, revision: str | None = None, token: str | bool | None = None, **options: Any
) -> Path:
    """Fetch files of a model repository, by names or patterns, into the client's cache, all of one commit; returns the
    folder they are in. `options` (`cache_dir`, `force_download`, `local_files_only`) as
    `huggingface_hub.snapshot_download` takes them. Files that are not there are left out.

    Raises:
        CheckpointError: no such repository or revision, no access, or no connection.
    """
    problem = f"{repo_id!r} is no local folder, and cannot be had from the Hub"
    with hub_errors(problem, repo_id, token):
        folder = client.snapshot_download(repo_id, allow_patterns=[*names], revision=revision, token=token, **options)
    return Path(folder)


def read_text(repo_id: str, name: str, *, branch: str | None = None, token: str | bool | None = None) -> str | None:
    """A small text file of a model repository as it is now, or `None`. A branch that does not exist yet has what the
    main branch has.

    Raises:
        CheckpointError: the Hub refused, or could not be reached; the file is not text.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sqat-hub-") as folder,
        hub_errors(f"{name} of {repo_id!r} cannot be had from the Hub", repo_id, token),
    ):
        try:
            path = client.hf_hub_download(repo_id, name, revision=branch, token=token, cache_dir=folder)
        except errors.RevisionNotFoundError:
            return None if branch is None else read_text(repo_id, name, token=token)
        except (errors.RemoteEntryNotFoundError, errors.RepositoryNotFoundError):
            return None
        return Path(path).read_text(encoding="utf-8")


def upload(
    folder: str | Path, repo_id: str, message: str, *, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Put the files of a folder into a model repository in one commit; arguments and errors as :func:`commit`. The list
    of checksums stays here: the Hub keeps its own, and files are edited there.
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
    """Put files into a model repository, which is created if need be, in one commit; returns its address.

    Args:
        files: path or content of each, by its name in the repository.
        repo_id, message: "owner/name", and of the commit.
        what: what is uploaded, for error messages.
        branch: created from the main branch if need be; default: the main branch.
        private: of a new repository; `None`: as its owner's settings have it.
        token: default: the user's own.
        replaces: which files that are there, other than `files`, are deleted; default: none.

    Raises:
        CheckpointError: the Hub refused, or could not be reached.
    """
    with hub_errors(f"{what} cannot be uploaded to {repo_id!r}", repo_id, token):
        api = client.HfApi(token=token)
        operations: list[client.CommitOperationAdd | client.CommitOperationDelete] = [
            client.CommitOperationAdd(name, content) for name, content in files.items()
        ]
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None and branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
        if replaces is not None:
            there = api.list_repo_files(repo, revision=branch)
            operations += [client.CommitOperationDelete(name) for name in there if name not in files and replaces(name)]
        # Not upload_folder, which may spread what belongs together over several commits.
        return str(api.create_commit(repo, operations, commit_message=message, revision=branch).commit_url)


@contextlib.contextmanager
def hub_errors(problem: str, repo_id: str, token: str | bool | None = None) -> Iterator[None]:
    """Turn what the Hub's client raises into a CheckpointError: the problem, why, and what would help."""
    used = usable_token(token)
    try:
        yield
    except FAILURES as error:
        if isinstance(error, SqatError):
            raise
        reason = _explain(error, repo_id)
        if used and used in str(error):  # somebody's answer holds it
            raise CheckpointError(f"{problem}: {reason.replace(used, '<token>')}") from None
        raise CheckpointError(f"{problem}: {reason}") from error


def _explain(error: BaseException, repo_id: str) -> str:
    """Why, and what would help: in one line where the client takes several, else in its words."""
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, FAILURES):
        return _explain(error.__cause__, repo_id)
    kinds: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, f"it is gated: ask for access at {constants.ENDPOINT}/{repo_id}, then {LOG_IN}"),
        (errors.RevisionNotFoundError, "it has no such revision: name a branch, tag or commit of it"),
        (
            errors.RepositoryNotFoundError,
            f"there is no such repository, or it is private: check its name; for private ones {LOG_IN}",
        ),
    ]
    if not isinstance(error, errors.HfHubHTTPError) and isinstance(error, HTTPError):
        return f"the Hub at {constants.ENDPOINT} cannot be reached: check the network ({error})"
    return next((words for kind, words in kinds if isinstance(error, kind)), str(error))


def usable_token(token: str | bool | None = None) -> str | None:
    """The token that requests will carry, given or the user's own, or `None`.

    Raises:
        ConfigError: no HTTP header can hold it; the HTTP library would show it in its error and its log.
    """
    found = token if isinstance(token, str) else None if token is False else client.get_token()
    if found and not (found.isascii() and found.isprintable() and " " not in found):
        raise ConfigError(
            f"the access token for the Hub (HF_TOKEN) holds spaces or characters that no token has: {LOG_IN}"
        )
    return found or None


def require_token(token: str | bool | None = None) -> None:
    """Raise a ConfigError if nobody is logged in, which writing to the Hub needs."""
    if usable_token(token) is None:
        raise ConfigError(f"nobody is logged in to the Hub, but writing there needs a token: {LOG_IN}")
