"""What only the user can know of a model: licence, training data and base model, by their names on the Hub; and of
models that other programs trained, figures and command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from sqat.errors import ConfigError
from sqat.hub.transfer import require_repo_id
from sqat.model_card.upkeep import read_card

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class Metric(NamedTuple):
    """A figure and its definition: what was measured, how, and on what."""

    name: str  # the Hub's, such as "perplexity"
    value: float
    meaning: str


@dataclass(frozen=True)
class Known:
    """What is said by hand; what is not said is left out of a card.

    Raises:
        ConfigError: a name that the Hub would not take; a metric without a definition.
    """

    license: str | None = None  # the Hub's identifier, such as "apache-2.0"
    datasets: tuple[str, ...] = ()  # Hub ids of the training data
    base_model: str | None = None  # Hub id of the model that this one was made of
    metrics: tuple[Metric, ...] = ()  # beside those on record
    training: str | None = None  # the command that trained it, where none is on record

    def __post_init__(self) -> None:
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ConfigError(
                f"license is {self.license!r}, but must be one of the Hub's identifiers, such as apache-2.0 or mit; "
                '"other" stands for what has none'
            )
        if self.base_model is not None:
            require_repo_id(self.base_model, "base_model")
        if isinstance(self.datasets, str):
            raise ConfigError(
                f"datasets is {self.datasets!r}, but must be a tuple of names, such as ({self.datasets!r},)"
            )
        for dataset in self.datasets:
            require_repo_id(dataset, "dataset")
        object.__setattr__(self, "metrics", tuple(_checked(metric) for metric in self.metrics))
        if self.training is not None and (not self.training.strip() or "```" in self.training):
            raise ConfigError(f"training is {self.training!r}, but must be a command, without ```")

    def metadata(self) -> dict[str, object]:
        """The fields that are given, under their names in a card."""
        fields = {
            "license": self.license,
            "datasets": list(self.datasets),
            "base_model": self.base_model,
            "metrics": self.metric_names(),
        }
        return {name: value for name, value in fields.items() if value}

    def metric_names(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(metric.name for metric in self.metrics))


def _checked(metric: Metric) -> Metric:
    if not isinstance(metric, tuple) or len(metric) != 3:
        raise ConfigError(f"metrics holds {metric!r}, but must hold Metric(name, value, meaning)")
    name, value, meaning = metric
    for field, text in (("name", name), ("meaning", meaning)):
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            raise ConfigError(f"a metric's {field} is {text!r}, but must be text of one line")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"the metric {name!r} is {value!r}, but must be a number")
    return Metric(*metric)


def with_known(card: str, known: Known) -> str:
    """A card that is there, its metadata changed where `known` says something, its text left as it is (so of metrics
    the names are added alone, and the command is not).

    Raises:
        ConfigError: the card's metadata are not valid YAML.
    """
    if not (changes := known.metadata()):
        return card
    result = read_card(card)
    for name, value in changes.items():
        result.data[name] = value
    return str(result)
