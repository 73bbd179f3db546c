"""The command that makes a run again, and its settings, from the run's configuration."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import yaml

from sqat.config import ModelConfig
from sqat.convert.uptrain_config import DEFAULTS, StudentConfig, UptrainConfig
from sqat.model_card.text import public_name
from sqat.run_config import DataConfig, RunConfig, TrainConfig
from sqat.train.run import FREE_ON_RESUME
from sqat.train.state import TrainState
from sqat.variants import PRESETS, preset

# Fields that the command line has options for; the others go by --set.
_OPTIONS = {
    "data.source": "--data",
    "data.validation": "--validation",
    "data.tokenizer": "--tokenizer",
    "train.epochs": "--epochs",
    "train.max_steps": "--steps",
    "train.batch_size": "--batch-size",
    "train.learning_rate": "--lr",
    "train.seed": "--seed",
    "train.device": "--device",
}
_UPTRAIN_OPTIONS = {
    **_OPTIONS,
    "model.tokens": "--tokens",
    "model.teacher": "--teacher",
    "model.kl_weight": "--kl-weight",
    "model.context_length": "--context",
}
_PATHS = ("data.source", "data.validation", "data.tokenizer", "model.path", "model.teacher")


def training_section(run: RunConfig | UptrainConfig, state: TrainState | None) -> str:
    """The command, how far it had come at this checkpoint, and all settings."""
    progress = "" if state is None else f"This checkpoint is after {state.step:,} steps and {state.tokens:,} targets. "
    command = training_command(run)
    path = "`PATH/` stands for folders of the machine it was trained on. " if "PATH/" in command else ""
    return (
        f"```sh\n{command}\n```\n\n{progress}{path}All settings, which the command leaves out where they are the "
        f"defaults:\n\n```yaml\n{settings(run)}```"
    )


def training_command(run: RunConfig | UptrainConfig) -> str:
    """A command that describes the same run; where checkpoints and logs went is not part of it."""
    if isinstance(run, UptrainConfig):
        least = StudentConfig(path=run.model.path, tokens=run.model.tokens)
        words, options, train = ["sqat", "uptrain", public_name(run.model.path)], _UPTRAIN_OPTIONS, DEFAULTS["train"]
        changes = {"model.tokens": run.model.tokens, **_changes("model", run.model, least)}
    else:
        name, changes = _nearest_preset(run.model)
        words, options, train = ["sqat", "train", name], _OPTIONS, {}
    changes |= {"data.source": run.data.source, **_changes("data", run.data, DataConfig())}
    changes |= _changes("train", run.train, TrainConfig.from_dict(train))
    for field, value in changes.items():
        value = _shown_value(field, value)
        if field in options and value is not None:
            words += [options[field], str(value)]
        else:
            words += ["--set", f"{field}={json.dumps(value)}"]
    return shlex.join(words)


def settings(run: RunConfig | UptrainConfig) -> str:
    """Data, training and (of uptraining) model settings as YAML, without what changes nothing in the result."""
    sections = run.to_dict()
    if isinstance(run, RunConfig):
        del sections["model"]  # it is the checkpoint's config.json
    kept = {
        section: {name: _shown_value(f"{section}.{name}", value) for name, value in fields.items() if _counts(name)}
        for section, fields in sections.items()
    }
    return yaml.safe_dump(kept, sort_keys=False)


def _nearest_preset(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The preset that differs least, and the fields in which it does."""
    differences = {name: _changes("model", config, preset(name)) for name in PRESETS}
    name = min(differences, key=lambda name: len(differences[name]))
    return name, differences[name]


def _changes(section: str, config: object, default: object) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    return {
        f"{section}.{name}": getattr(config, name)
        for name in fields
        if _counts(name) and getattr(config, name) != getattr(default, name)
    }


def _counts(name: str) -> bool:
    return name not in FREE_ON_RESUME


def _shown_value(field: str, value: Any) -> Any:
    return public_name(value) if field in _PATHS and isinstance(value, str) else value
