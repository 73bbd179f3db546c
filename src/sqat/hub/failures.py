"""What the Hub's client raises, in words that say what to do. No token is ever part of them."""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sqat.hub.tokens import LOG_IN, without_tokens

# The client's HTTP library's errors, OSError for connections and files, RuntimeError from its upload threads,
# ValueError for ids and for answers that it cannot read.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError)


def explain(error: BaseException, repo_id: str, *, token: str | bool | None = None) -> str:
    """Why a request for a repository failed, and what would help; `token` is the one that was given, if any."""
    return without_tokens(_explain(error, repo_id), token)


def _explain(error: BaseException, repo_id: str) -> str:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, FAILURES):
        return _explain(error.__cause__, repo_id)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, but must not be where the Hub is needed"
    if isinstance(error, GatedRepoError):
        return f"it is gated ({status}): ask for access at {constants.ENDPOINT}/{repo_id}, then {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no such revision ({status}): name a branch, tag or commit of it"
    if isinstance(error, HfHubHTTPError) and _refused_token(error):
        return f"the Hub does not accept the token ({status}): {LOG_IN} to one that is valid"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is private ({status}): check its name; for private ones {LOG_IN}"
    if status == 401:
        return f"nobody is logged in (401): {LOG_IN}"
    if status == 403:
        return (
            f"the token has no permission (403): it needs write access, and its owner a right to {repo_id}; "
            f"tokens are made at {constants.ENDPOINT}/settings/tokens"
        )
    if status is None and isinstance(error, HTTPError):
        return f"the Hub at {constants.ENDPOINT} cannot be reached: check the network ({error})"
    return str(error)


def _refused_token(error: HfHubHTTPError) -> bool:
    """The Hub answers 401 for what is not there, too; it names a bad token in a header."""
    message = error.response.headers.get("X-Error-Message") or ""
    return error.response.status_code == 401 and "credentials" in message.lower()
