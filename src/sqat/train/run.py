"""A whole run from its configuration: data, model, trainer, logs, in one folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from sqat.config import Config
from sqat.data.batches import Batches
from sqat.durable import replace_file
from sqat.errors import ConfigError, DataError
from sqat.lock import Lock
from sqat.model import Decoder
from sqat.run_config import RunConfig, TrainConfig, read_yaml
from sqat.train import distributed
from sqat.train.callbacks import Callback, JsonlLog, TensorBoard, tensorboard_available
from sqat.train.checkpoints import list_checkpoints
from sqat.train.claim import claim
from sqat.train.distributed import naming_loss
from sqat.train.job import is_own, sign
from sqat.train.loop import Trainer
from sqat.train.prepare import PreparedData, Progress, prepare_data

T = TypeVar("T")

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"

# Fields that do not change what a run computes, and so may differ when it is resumed.
FREE_ON_RESUME = {"checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "cache_dir"}
FREE_ON_RESUME |= {"max_skipped_steps", "parallel"}

# Fields that change how a step is computed, and with it the last bits, but not what: a way out where memory is short.
_FREE_FOR_MEMORY = {"batch_size", "gradient_accumulation", "gradient_checkpointing"}


@naming_loss()
def start_run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: Progress | None = None,
) -> Trainer:
    """Prepare a run in folder `out`; call `.train()` on the result. To be called in every process that was launched.

    Args:
        config: the whole run. It is written to `out/config.yaml`.
        out: the run's folder: configuration, `metrics.jsonl`, `checkpoints/`, `tensorboard/`.
        resume: go on from the newest checkpoint there (a run that has none starts at the beginning). What torchrun has
            started again goes on with the run that it began, or resumed, before.
        callbacks: beside the logs, which are always written.
        progress: told (documents, tokens) while text is tokenised.

    Raises:
        ConfigError: `out` holds a run and `resume` is false, or a run of another configuration, or one that is going on
            in another process.
        DataError, CheckpointError: data or checkpoint cannot be read.
        ProcessLostError: another process of the run is gone.
        StorageError: `out` cannot be written.
    """
    out = Path(out)
    data, resume, _lock = begin_run(
        config, out, resume, lambda: prepare_data(config.data, config.model.vocab_size, progress=progress)
    )
    check_same_data(data)
    trainer = make_trainer(config, data, out, callbacks)
    open_run(config, out, trainer, resume)
    return trainer


def begin_run(config: Any, out: Path, resume: bool, prepare: Callable[[], T]) -> tuple[T, bool, list[Lock | None]]:
    """What comes before a trainer of any kind: processes, the run's folder, data; (what `prepare` gives, whether to
    resume, the folder's lock in the first process, to be kept until the trainer has it).
    """
    distributed.join(config.train.device)
    restarted = any(distributed.gather(distributed.restarts()))
    locks: list[Lock | None] = []

    def take_folder() -> bool:
        locks.append(claim(out))
        goes_on = is_own(out, restarted) or resume
        check_folder(config, out, goes_on)
        sign(out)
        return goes_on

    goes_on = distributed.first_does(take_folder)
    return distributed.in_turn(prepare), goes_on, locks


def open_run(config: Config, out: Path, trainer: Trainer, resume: bool) -> None:
    """What comes after it: the folder, and where the run goes on."""

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / CONFIG_FILE, yaml.safe_dump(config.to_dict(), sort_keys=False))

    distributed.first_does(write)
    if resume and not trainer.resume() and distributed.is_first():
        logger.warning("%s has no checkpoint yet: starting at the beginning", out)


def check_same_data(data: PreparedData) -> None:
    """Raise a DataError unless all processes, on whatever machines, have read the same."""
    sizes = [(len(part), part.num_tokens, part.document_bytes) for part in data[1:] if part is not None]
    first, *others = distributed.gather((data.tokenizer.fingerprint(), sizes))
    for i, other in enumerate(others, start=1):
        if other != first:
            raise DataError(
                f"process {i} has other data than the first: (documents, tokens, bytes) are {other[1]}, "
                f"not {first[1]}; every machine must have the same files and tokenizer"
            )


def make_trainer(config: RunConfig, data: PreparedData, out: Path, callbacks: Iterable[Callback] = ()) -> Trainer:
    """The trainer of a run whose data are ready, the model freshly initialised from the seed."""
    torch.manual_seed(config.train.seed)
    model = Decoder(config.model)
    torch.manual_seed(config.train.seed)  # dropout's draws do not depend on how many the model took either
    batches = Batches(
        data.train,
        batch_size=config.train.batch_size,
        context_length=config.model.context_length,
        mode=config.data.mode,
        padding_as_target=config.data.padding_as_target,
        end_truncated=config.data.padding_as_target,
        seed=config.train.seed,
    )
    trainer = Trainer(
        model,
        batches,
        config.train,
        validation=data.validation,
        out=out,
        tokenizer=data.tokenizer,
        callbacks=[*make_logs(config.train, out), *callbacks],
    )
    batches.place(trainer.accelerator.device)
    return trainer


def make_logs(config: TrainConfig, out: Path) -> list[Callback]:
    """The logs that every run has."""
    logs: list[Callback] = [JsonlLog(out / METRICS_FILE)]
    if config.tensorboard:
        if tensorboard_available():
            logs.append(TensorBoard(out / "tensorboard"))
        else:
            logger.info("no TensorBoard log: pip install tensorboard")
    return logs


def check_folder(config: Config, out: Path, resume: bool) -> None:
    """Raise a ConfigError unless a run of this configuration (sections of fields) can begin or go on in `out`."""
    if not resume:
        if list_checkpoints(out):
            raise ConfigError(f"{out} holds a run already: resume it (--resume), or choose another folder (--out)")
        return
    if (out / CONFIG_FILE).is_file():
        try:
            saved = type(config).from_dict(read_yaml(out / CONFIG_FILE)).to_dict()
        except ConfigError as error:
            raise ConfigError(f"{out / CONFIG_FILE} is damaged, or of another version: {error}") from error
        free = FREE_ON_RESUME | (_FREE_FOR_MEMORY if _rows(saved) == _rows(config.to_dict()) else set())
        for section, fields in config.to_dict().items():
            for name, value in fields.items():
                if name not in free and saved[section][name] != value:
                    raise ConfigError(
                        f"{section}.{name} is {value!r}, but the run in {out} has {saved[section][name]!r}: "
                        "resume it with its own configuration, or choose another folder"
                    )


def _rows(config: Mapping[str, Any]) -> int:
    """Of a step."""
    train = config["train"]
    return int(train["batch_size"] * train["gradient_accumulation"])
