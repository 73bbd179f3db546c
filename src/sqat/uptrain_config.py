"""The description of an uptraining run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqat.config import Config, require
from sqat.run_config import DataConfig, TrainConfig

DEFAULTS = {"train": {"learning_rate": 3e-4, "batch_size": 16}}  # where it differs from training from scratch


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    """The model, the teacher, and the length of an uptraining run."""

    path: str  # a stock checkpoint: folder or Hub id
    tokens: int  # training targets, to the nearest step
    teacher: str | None = None  # a stock checkpoint of the same vocabulary; null: cross-entropy alone
    kl_weight: float = 1.0  # of KL(teacher ‖ student) beside cross-entropy
    context_length: int | None = None  # tokens of a row; null: the model's own, at most 1,024

    def __post_init__(self) -> None:
        require(self.tokens >= 1, self, "tokens", "at least 1")
        require(self.kl_weight >= 0, self, "kl_weight", "at least 0")
        right = "at least 2, or null"
        require(self.context_length is None or self.context_length >= 2, self, "context_length", right)


@dataclass(frozen=True, kw_only=True)
class UptrainConfig(Config):
    """A whole run: as :class:`sqat.run_config.RunConfig`, with a stock checkpoint for a model."""

    model: StudentConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(**DEFAULTS["train"]))  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        require(self.data.tokenizer is None, self.data, "tokenizer", "null: the checkpoint's own is used")
        require(self.data.mode == "packed", self.data, "mode", '"packed", which alone is uptrained with')
        require(self.train.max_steps is None, self.train, "max_steps", "null: model.tokens decides")
        require(self.train.max_tokens is None, self.train, "max_tokens", "null: model.tokens decides")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UptrainConfig:
        defaults = {name: {**fields, **values.get(name, {})} for name, fields in DEFAULTS.items()}
        return super().from_dict({**values, **defaults})
