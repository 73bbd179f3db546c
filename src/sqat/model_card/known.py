"""What only the user can know of a model: licence, training data and base model, by their names on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub import ModelCard

from sqat.errors import ConfigError
from sqat.hub.transfer import require_repo_id

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Known:
    """Metadata given by hand; what is not given is left out of a card.

    Raises:
        ConfigError: a name that the Hub would not take.
    """

    license: str | None = None  # the Hub's identifier, such as "apache-2.0"
    datasets: tuple[str, ...] = ()  # Hub ids of the training data
    base_model: str | None = None  # Hub id of the model that this one was made of

    def __post_init__(self) -> None:
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ConfigError(
                f"license is {self.license!r}, but must be one of the Hub's identifiers, such as apache-2.0 or mit; "
                '"other" stands for what has none'
            )
        if self.base_model is not None:
            require_repo_id(self.base_model, "base_model")
        for dataset in self.datasets:
            require_repo_id(dataset, "dataset")

    def metadata(self) -> dict[str, object]:
        """The fields that are given, under their names in a card."""
        fields = {"license": self.license, "datasets": list(self.datasets), "base_model": self.base_model}
        return {name: value for name, value in fields.items() if value}


def with_known(card: str, known: Known) -> str:
    """A card that is there, its metadata changed where `known` says something, its text left as it is.

    Raises:
        ConfigError: the card's metadata are not valid YAML.
    """
    if not (changes := known.metadata()):
        return card
    try:
        result = ModelCard(card)
    except Exception as error:  # whatever its YAML is
        raise ConfigError(f"README.md has metadata that cannot be read: {error}") from error
    for name, value in changes.items():
        result.data[name] = value
    return str(result)
