"""A whole run from its configuration: data, model, trainer, logs, in one folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml

from sqat.config_fields import Config
from sqat.data.batches import Batches
from sqat.durable import replace_file
from sqat.errors import ConfigError
from sqat.model import Decoder
from sqat.run_config import RunConfig, TrainConfig, read_yaml
from sqat.train.callbacks import Callback, JsonlLog, TensorBoard, tensorboard_available
from sqat.train.checkpoints import list_checkpoints
from sqat.train.claim import claim
from sqat.train.loop import Trainer
from sqat.train.prepare import PreparedData, Progress, prepare_data

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"

# Fields that do not change what a run computes, and so may differ when it is resumed.
_FREE_ON_RESUME = {"checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "cache_dir"}


def start_run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: Progress | None = None,
) -> Trainer:
    """Prepare a run in folder `out`; call `.train()` on the result.

    Args:
        config: the whole run. It is written to `out/config.yaml`.
        out: the run's folder: configuration, `metrics.jsonl`, `checkpoints/`, `tensorboard/`.
        resume: go on from the newest checkpoint there (a run that has none starts at the beginning).
        callbacks: beside the logs, which are always written.
        progress: told (documents, tokens) while text is tokenised.

    Raises:
        ConfigError: `out` holds a run and `resume` is false, or a run of another configuration, or one that is going on
            in another process.
        DataError, CheckpointError: data or checkpoint cannot be read.
        StorageError: `out` cannot be written.
    """
    out = Path(out)
    lock = claim(out)
    check_folder(config, out, resume)
    data = prepare_data(config.data, config.model.vocab_size, progress=progress)
    trainer = make_trainer(config, data, out, callbacks)
    trainer.lock = lock
    replace_file(out / CONFIG_FILE, yaml.safe_dump(config.to_dict(), sort_keys=False))
    if resume and not trainer.resume():
        logger.warning("%s has no checkpoint yet: starting at the beginning", out)
    return trainer


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
            logger.info('no TensorBoard log: pip install "sqat[tensorboard]"')
    return logs


def check_folder(config: Config, out: Path, resume: bool) -> None:
    """Raise a ConfigError unless a run of this configuration (sections of fields) can begin or go on in `out`."""
    if not resume:
        if list_checkpoints(out):
            raise ConfigError(f"{out} holds a run already: resume it (--resume), or choose another folder (--out)")
        return
    if (out / CONFIG_FILE).is_file():
        saved = type(config).from_dict(read_yaml(out / CONFIG_FILE)).to_dict()
        for section, fields in config.to_dict().items():
            for name, value in fields.items():
                if name not in _FREE_ON_RESUME and saved[section][name] != value:
                    raise ConfigError(
                        f"{section}.{name} is {value!r}, but the run in {out} has {saved[section][name]!r}: "
                        "resume it with its own configuration, or choose another folder"
                    )
