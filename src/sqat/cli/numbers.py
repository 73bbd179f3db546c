"""Options that are lists of integers."""

from sqat.errors import ConfigError


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """The integers in a comma-separated list.

    Raises:
        ConfigError: `text` is something else; the message names `option` and shows `example`.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}, but must be numbers like {example}") from None
