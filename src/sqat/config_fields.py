"""What all configurations share: strict reading from plain data, and checks that name field, value and remedy."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Self

from sqat.errors import ConfigError
from sqat.untrusted import shown

MAX_INTEGER = (1 << 63) - 1  # what the libraries below take


class Config:
    """Mixin for frozen dataclasses of plain fields: to and from dictionaries."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain data, such as parsed YAML or JSON.

        Raises:
            ConfigError: an unknown or missing field, or a value of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__}: expected a mapping of fields, found {shown(values)}")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in fields:
                close = difflib.get_close_matches(str(name)[:100], fields, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the fields are {', '.join(fields)}"
                raise ConfigError(f"{cls.__name__}: unknown field {shown(name)}; {hint}")
        for name, field in fields.items():
            no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if no_default and name not in values:
                raise ConfigError(f"{cls.__name__}: field {name!r} is missing")
        types_of = _types_of(cls)  # type: ignore[arg-type]
        return cls(**{name: convert(value, types_of[name], f"{cls.__name__}.{name}") for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]


@functools.cache
def _types_of(cls: type) -> dict[str, Any]:
    """The fields' types; kept, since Python compiles every annotation anew."""
    return typing.get_type_hints(cls)


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind` (int, float, bool, str, None, unions or tuples of them, a dict, or a Config); what YAML and the
    command line give is read leniently.

    Raises:
        ConfigError: naming `where`, the value and the type that would be right.
    """
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    empty = value is None or (isinstance(value, str) and value.lower() in ("null", "none"))
    if empty and types.NoneType in options:
        return None
    for option in options:
        if option is Any:
            return value
        if typing.get_origin(option) is dict and isinstance(value, Mapping):
            return dict(value)
        if isinstance(option, type) and issubclass(option, Config):
            return value if isinstance(value, option) else option.from_dict(value)
        if typing.get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(convert(item, typing.get_args(option)[0], where) for item in value)
        converted = _convert_scalar(value, option)
        if converted is not None:
            if isinstance(converted, int) and abs(converted) > MAX_INTEGER:
                right = f"at most {MAX_INTEGER:,}" if converted > 0 else f"at least {-MAX_INTEGER:,}"
                raise ConfigError(f"{where} is {shown(value)}, but must be {right}")
            return converted
    names = " or ".join(getattr(option, "__name__", str(option)).replace("NoneType", "null") for option in options)
    raise ConfigError(f"{where} is {shown(value)}, but must be {names}")


def _convert_scalar(value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind is str:
        return value if isinstance(value, str) else None
    if kind in (int, float) and isinstance(value, (int, float, str)):
        try:
            number = float(value)  # YAML 1.1 reads "2e-3" as a string
        except (ValueError, OverflowError):
            return None
        if not math.isfinite(number):
            return None
        if kind is float:
            return number
        if isinstance(value, int):
            return value
        return int(number) if number.is_integer() else None
    return None


def require(condition: bool, config: object, field: str, right: str) -> None:
    """Raise a ConfigError naming the field, its value and what would be right, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{type(config).__name__}.{field} is {shown(getattr(config, field))}, but must be {right}")


def require_positive(config: object, field: str) -> None:
    require(getattr(config, field) >= 1, config, field, "at least 1")


def require_finite(config: object, field: str) -> None:
    require(math.isfinite(getattr(config, field)), config, field, "a finite number")


def require_at_most(config: object, field: str, most: int) -> None:
    require(getattr(config, field) <= most, config, field, f"at most {most:,}")


def require_choice(config: object, field: str, choices: Sequence[str]) -> None:
    require(getattr(config, field) in choices, config, field, f"one of {', '.join(choices)}")


def require_fraction(config: object, field: str) -> None:
    require(0 <= getattr(config, field) < 1, config, field, "at least 0 and below 1")
