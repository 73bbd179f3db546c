"""What the Hub's client raises, in words that say what to do. No token is ever part of them."""

from __future__ import annotations

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sqat.errors import ConfigError

# The client's HTTP library's errors, OSError for connections and files, RuntimeError from its upload threads,
# ValueError for ids and for answers that it cannot read.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError)

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def explain(error: BaseException, repo_id: str, *, token: str | bool | None = None) -> str:
    """Why a request for a repository failed, and what would help; `token` is the one that was given, if any."""
    return without_token(_explain(error, repo_id), token)


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


def require_token(token: str | bool | None = None) -> None:
    """Raise a ConfigError unless there is a token to write with, given or stored."""
    if token is False or not usable_token(token):
        raise ConfigError(f"nobody is logged in to the Hub, but writing there needs a token: {LOG_IN}")


def usable_token(token: str | bool | None = None) -> str | None:
    """The token that requests will carry, or `None`.

    Raises:
        ConfigError: it holds characters that no token has. (The HTTP library's own error would show it.)
    """
    found = token if isinstance(token, str) else None if token is False else get_token()
    if found is not None and not (found.isascii() and found.isprintable() and " " not in found):
        raise ConfigError(f"the Hub's token has characters that no token has, such as spaces or controls: {LOG_IN}")
    return found


def without_token(text: str, token: str | bool | None = None) -> str:
    """A text with the given and the stored token struck out, whoever put them there."""
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "<token>")
    return text
