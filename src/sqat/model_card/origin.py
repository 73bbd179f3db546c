"""How a checkpoint came about, as far as the files in and around it tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqat.convert.uptrain_config import UptrainConfig
from sqat.errors import CheckpointError
from sqat.run_config import RunConfig, read_yaml
from sqat.train.checkpoints import FOLDER
from sqat.train.run import CONFIG_FILE
from sqat.train.state import STATE_FILE, TrainState, read_state
from sqat.untrusted import read_json

RECORD_FILE = "conversion.json"  # of `sqat convert --query-heads`
_RECORD = {"source", "method", "before", "after", "context_length"}  # what a card needs of it
_COSTS = {"query_heads", "kv_heads", "parameters", "active_parameters", "flops_per_token"}
_COSTS |= {"attention_flops_per_token", "kv_bytes_per_token"}


@dataclass(frozen=True)
class Origin:
    """What is on record; `None` where nothing is."""

    run: RunConfig | UptrainConfig | None = None  # the run that the checkpoint belongs to
    state: TrainState | None = None  # of training, at this very checkpoint
    conversion: dict[str, Any] | None = None  # see sqat.convert.files.write_conversion

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation of these very weights."""
        return None if self.state is None else self.state.own_evaluation

    @property
    def base_model(self) -> str | None:
        """The Hub id of the model that this one was made of, where it is on record."""
        return None if self.conversion is None else self.conversion.get("base_model")


def read_origin(folder: str | Path) -> Origin:
    """What there is to read of a checkpoint: its progress, its run's configuration, its conversion.

    Raises:
        CheckpointError, ConfigError: a file that is damaged.
    """
    folder = Path(folder).resolve()
    run = folder.parent.parent
    is_of_run = folder.parent.name == FOLDER and (run / CONFIG_FILE).is_file()
    return Origin(
        run=_read_run(run / CONFIG_FILE) if is_of_run else None,
        state=read_state(folder) if (folder / STATE_FILE).is_file() else None,
        conversion=_read_record(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else None,
    )


def _read_run(path: Path) -> RunConfig | UptrainConfig:
    values = read_yaml(path)
    model = values.get("model")
    uptraining = isinstance(model, dict) and "path" in model
    return UptrainConfig.from_dict(values) if uptraining else RunConfig.from_dict(values)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
        missing = _RECORD - set(record) or _COSTS - (set(record["before"]) & set(record["after"]))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if missing:
        raise CheckpointError(
            f"{path} is damaged, or of another version of sqat: it lacks {', '.join(sorted(missing))}"
        )
    return record
