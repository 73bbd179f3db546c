"""The description of a training run: model, data, training; from YAML and `--set a.b=c`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sqat.config import Config, ModelConfig, require, require_choice, require_positive
from sqat.errors import ConfigError
from sqat.untrusted import shown
from sqat.variants import preset

CONFIGS = Path(__file__).parent / "configs"  # configurations in the package, for `sqat train` and `sqat compare`
PRECISIONS = ("auto", "bf16", "float32")
ROUTER_LOSSES = ("balanced", "rxnn", "none")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The data of a run: where documents come from, and how they become rows of token ids."""

    source: str = "stories"  # a Hub id, folder, file, or "stories[:N]"; see sqat.data.text.open_source
    validation: str | None = None  # a source; null: the source's validation split, or one document in 100 held out
    field: str = "text"  # column or key that holds the text
    limit: int | None = None  # at most this many training documents
    validation_limit: int | None = None
    tokenizer: str | None = None  # a tokenizer.json or its folder; null: trained on the source
    mode: str = "packed"  # "packed": rows full of documents; "rows": one document per row, padded
    padding_as_target: bool = False  # count padding as targets, as RxNN did (mode "rows" only)
    encoding_errors: str = "strict"  # "replace" replaces invalid UTF-8
    cache_dir: str | None = None  # token files; null: $SQAT_CACHE or the user's cache folder

    def __post_init__(self) -> None:
        require_choice(self, "mode", ("packed", "rows"))
        require_choice(self, "encoding_errors", ("strict", "replace"))
        right = 'false where mode is "packed", which has no padding'
        require(self.mode == "rows" or not self.padding_as_target, self, "padding_as_target", right)
        for name in ("limit", "validation_limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1, or null for no limit")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained: schedule, optimizer, checkpoints, device."""

    batch_size: int = 64  # rows per forward pass, over all ranks
    gradient_accumulation: int = 1  # micro-batches per step, which count as one batch
    epochs: int | None = 1
    max_steps: int | None = None  # the schedule's length, if set; else epochs decide
    max_tokens: int | None = None  # stop after this many training targets
    learning_rate: float = 2e-3
    min_learning_rate: float = 0.0  # at the end of the cosine
    warmup_steps: int = 0
    weight_decay: float = 0.01
    decay_all: bool = False  # decay biases and norms too, as RxNN did
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float | None = 1.0  # gradient norm; null: no clipping
    max_skipped_steps: int = 10  # the run ends after this many steps in a row with a NaN or infinite loss or gradient
    precision: str = "auto"  # "bf16" (autocast) or "float32"; auto: bf16 if the hardware supports it
    router_loss: str = "balanced"  # Switch/Mixtral; "rxnn": RxNN's form, which does not balance; "none"
    router_loss_weight: float = 0.01
    evaluate_first: bool = False  # before the first step too
    evaluate_every: int | None = None  # steps; null: at the end only
    checkpoint_every: int | None = 500  # steps; null: at the end only
    keep_checkpoints: int = 2  # the newest ones, in addition to the best
    log_every: int = 10  # steps between metric lines
    seed: int = 0
    device: str = "auto"  # "cpu", "cuda"; auto: a GPU if there is one
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile the model
    parallel: str = "ddp"  # several ranks: "ddp", or "fsdp" for sharded parameters (FSDP2)
    tensorboard: bool = True  # if the package is installed

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation", "log_every", "keep_checkpoints", "max_skipped_steps"):
            require_positive(self, name)
        for name in ("epochs", "max_steps", "max_tokens", "evaluate_every", "checkpoint_every"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, self, name, "at least 1, or null")
        require(self.epochs is not None or self.max_steps is not None, self, "epochs", "set, where max_steps is null")
        require(self.learning_rate > 0, self, "learning_rate", "positive, such as 2e-3")
        right = f"between 0 and learning_rate ({self.learning_rate})"
        require(0 <= self.min_learning_rate <= self.learning_rate, self, "min_learning_rate", right)
        for name in ("warmup_steps", "weight_decay", "router_loss_weight", "seed"):
            require(getattr(self, name) >= 0, self, name, "at least 0")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, self, name, "at least 0 and below 1")
        require(self.clip_norm is None or self.clip_norm > 0, self, "clip_norm", "positive, or null for no clipping")
        require_choice(self, "precision", PRECISIONS)
        if self.router_loss == "card":  # its name in runs written before
            object.__setattr__(self, "router_loss", "rxnn")
        require_choice(self, "router_loss", ROUTER_LOSSES)
        require_choice(self, "parallel", ("ddp", "fsdp"))
        right = "auto, cpu, cuda, cuda:N or mps"
        require(_DEVICE.fullmatch(self.device) is not None, self, "device", right)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """A training run: model, data and training. In YAML, `model` is a preset's name, or a mapping whose optional
    `preset` gives the defaults.
    """

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        if not isinstance(values, Mapping):
            raise ConfigError(f"RunConfig: expected a mapping with model, data and train, found {shown(values)}")
        values = dict(values)
        if "model" in values:
            values["model"] = _model_config(values["model"])
        return super().from_dict(values)


def _model_config(value: Any) -> ModelConfig:
    if isinstance(value, ModelConfig):
        return value
    if isinstance(value, str):
        return preset(value)
    if isinstance(value, Mapping) and "preset" in value:
        changes = {name: change for name, change in value.items() if name != "preset"}
        return ModelConfig.from_dict({**preset(str(value["preset"])).to_dict(), **changes})
    return ModelConfig.from_dict(value)


def find_config(path: str | Path) -> Path:
    """A configuration file by its path, or by its name among those in this package: `configs/card/sqat-mm.yaml` and
    `card/sqat-mm.yaml` are found from every folder. A file at `path` comes first.
    """
    path = Path(path).expanduser()
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    packaged = (CONFIGS / name).resolve()
    if path.is_file() or not (packaged.is_file() and packaged.is_relative_to(CONFIGS.resolve())):
        return path
    return packaged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, which may be one of this package's (see :func:`find_config`).

    Raises:
        ConfigError: missing file, invalid YAML, or something else than a mapping.
    """
    path = find_config(path)
    if not path.is_file():
        names = ", ".join(sorted(f"configs/{each.relative_to(CONFIGS)}" for each in CONFIGS.rglob("*.yaml")))
        raise ConfigError(f"no configuration file at {path}; this package has {names}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-99-99
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, but must hold a mapping with model, data and train")
    return values


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of nested mappings with `a.b=c` assignments applied; values are read as YAML.

    Raises:
        ConfigError: an override without "=", with a value that is not YAML, or one that goes through something that is
            not a mapping.
    """
    result = {**values}
    for override in overrides:
        path, equals, text = override.partition("=")
        *parents, name = path.strip().split(".")
        if not equals or not all([*parents, name]):
            raise ConfigError(f"override {override!r} must look like train.learning_rate=1e-3")
        level = result
        for parent in parents:
            below = level.get(parent, {})
            if parent == "model" and isinstance(below, str):
                below = {"preset": below}
            if not isinstance(below, Mapping):
                raise ConfigError(f"override {override!r}: {parent} is {shown(below)}, which has no fields")
            level[parent] = dict(below)
            level = level[parent]
        try:
            level[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
    return result
