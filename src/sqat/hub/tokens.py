"""Keeping access tokens out of what is printed and logged.

The Hub's client takes a token from $HF_TOKEN, from the file that `hf auth login` writes, or as an argument. Its own
errors do not show it, but those of the HTTP library below do, where a token cannot be sent ("Illegal header value
b'Bearer …'").
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from huggingface_hub import constants, get_token

from sqat.errors import ConfigError

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
HIDDEN = "<token>"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_SHORTEST = 4  # what is shorter is no token, and would be cut out of ordinary words


def without_tokens(error: object, *tokens: object) -> str:
    """What an error says, with every token known to this process (and `tokens`) replaced by `HIDDEN`."""
    text = str(error)
    for token in _known(tokens):
        text = text.replace(token, HIDDEN)
    return text


def cause(error: BaseException, *tokens: object) -> BaseException | None:
    """The error, to be chained to ours; `None` where it or one that it comes from shows a token, which a traceback
    would print.
    """
    link: BaseException | None = error
    while link is not None:
        if without_tokens(link, *tokens) != str(link):
            return None
        link = link.__cause__ or link.__context__
    return error


def usable_token(token: str | bool | None = None) -> str | None:
    """The token that requests will carry, given or the user's own, or `None`.

    Raises:
        ConfigError: it holds what no HTTP header can: the HTTP library would show it in its error and its log.
    """
    found = token if isinstance(token, str) else None if token is False else get_token()
    if found and not (found.isascii() and found.isprintable() and " " not in found):
        raise ConfigError(
            f"the access token for the Hub (HF_TOKEN) holds spaces or characters that no token has: {LOG_IN}"
        )
    return found or None


def require_token(token: str | bool | None = None) -> None:
    """Raise a ConfigError unless there is a token to write with, given or stored."""
    if usable_token(token) is None:
        raise ConfigError(f"nobody is logged in to the Hub, but writing there needs a token: {LOG_IN}")


def _known(tokens: tuple[object, ...]) -> list[str]:
    found = [token for token in tokens if isinstance(token, str)]
    found += [os.environ.get(name, "") for name in VARIABLES]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    # In messages a token may stand escaped, as in b'Bearer hf_\x07…'.
    stripped = {token.strip() for token in found}
    escaped = {repr(token)[1:-1] for token in stripped}
    return sorted((token for token in stripped | escaped if len(token) >= _SHORTEST), key=len, reverse=True)
