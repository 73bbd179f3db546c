"""Lists of whole numbers, as options give them."""

from sqat.errors import ConfigError


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """The numbers of a list with commas.

    Raises:
        ConfigError: something else is in it.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}, but must be numbers like {example}") from None
