"""A whole run from its configuration: data, model, trainer, logs, in one folder."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from sqat.config import Config
from sqat.data.batches import Batches, BatchState
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer
from sqat.data.tokens import Progress
from sqat.durable import replace_file
from sqat.errors import CheckpointError, ConfigError, DataError
from sqat.model import Decoder
from sqat.run_config import RunConfig, TrainConfig, read_yaml
from sqat.train import distributed
from sqat.train.callbacks import JsonlLog, TensorBoard, tensorboard_available
from sqat.train.checkpoints import list_checkpoints, run_folder
from sqat.train.prepare import PreparedData, prepare_data
from sqat.train.trainer import Callback, Trainer
from sqat.untrusted import read_json

Parts = TypeVar("Parts")
Run = TypeVar("Run", bound=Trainer)

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
DATA_FILE = "data.json"  # fingerprints of what the run is trained on

# Fields that do not change what a run computes, and those that change its last bits only: both may differ when it is
# resumed, the second as a way out where memory is short; a step must keep its rows.
WITHOUT_EFFECT = {"checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "cache_dir", "max_skipped_steps"}
FREE_ON_RESUME = WITHOUT_EFFECT | {"batch_size", "gradient_accumulation", "gradient_checkpointing", "parallel"}


@distributed.naming_lost_ranks()
def start_run(
    config: RunConfig | Mapping[str, Any],
    out: str | Path,
    *,
    resume: bool = False,
    accept_new_data: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: Progress | None = None,
) -> Trainer:
    """Prepare a training run in a folder and return its :class:`sqat.Trainer`; call `.train()` on it. With several
    ranks, every process has to call this.

    Args:
        config: the run, also as plain data such as `{"model": "sqat-s"}`; it is written to `out/config.yaml`.
        out: the run's folder: configuration, `metrics.jsonl`, `checkpoints/`, `tensorboard/`.
        resume: continue from the newest checkpoint, if there is one, with its tokenizer. A job that torchrun
            restarted always does.
        accept_new_data: resume even if the data are not those that the run began with.
        callbacks: in addition to the logs, which are always written.
        progress: called with (documents, tokens, documents in all or None) while text is tokenised.

    Raises:
        ConfigError: `out` holds a run and `resume` is false, or a run of another configuration or other data, or one
            that another process trains.
        DataError, CheckpointError: data or checkpoint cannot be read.
        ProcessLostError: another rank has ended.
        StorageError: `out` cannot be written.
    """
    out = Path(out).expanduser()
    run = config if isinstance(config, RunConfig) else RunConfig.from_dict(config)

    def prepare(goes_on: bool) -> PreparedData:
        own = _tokenizer_of(out, run, accept_new_data) if goes_on else None
        return prepare_data(run.data, run.model.vocab_size, tokenizer=own, progress=progress)

    return begin_run(run, out, resume, accept_new_data, prepare, lambda data: make_trainer(run, data, out, callbacks))


def _tokenizer_of(out: Path, config: RunConfig, accept_new_data: bool) -> Tokenizer | None:
    """The tokenizer of the newest checkpoint that has one. Raises a ConfigError if another is configured now."""
    for checkpoint in reversed(list_checkpoints(out)):
        if (checkpoint / TOKENIZER_FILE).is_file():
            with suppress(DataError):  # a damaged checkpoint, which resuming passes over
                own, given = Tokenizer.load(checkpoint), config.data.tokenizer
                if given is not None and Tokenizer.load(given).fingerprint() != own.fingerprint():
                    _refuse_or_warn(out, ["tokenizer"], accept_new_data, f"data.tokenizer is {given!r}")
                return own
    return None


def begin_run(
    config: Any,
    out: Path,
    resume: bool,
    accept_new_data: bool,
    prepare: Callable[[bool], Parts],
    make: Callable[[Parts], Run],
) -> Run:
    """What every kind of run begins with: lock and check the folder, make the trainer, compare the data with those that
    the run began with, and resume. What torchrun has restarted always resumes.

    Args:
        prepare: called on every rank, with whether to resume; returns what the trainer is made of.
        make: makes the trainer, which holds the folder's lock from then on.
    """
    distributed.join(config.train.device)
    resume = resume or any(distributed.gather(distributed.restarts()))
    with ExitStack() as held:

        def take_folder() -> None:
            held.enter_context(run_folder(out))
            check_folder(config, out, resume, accept_new_data)

        distributed.first_does(take_folder)
        trainer = make(distributed.in_turn(lambda: prepare(resume)))
    assert trainer.tokenizer is not None
    data = PreparedData(trainer.tokenizer, trainer.batches.tokens, trainer.validation)
    check_same_data(data)
    changed = distributed.first_does(lambda: _write_origin(config, out, data, resume, accept_new_data))
    if resume and not trainer.resume() and distributed.is_first():
        logger.warning("%s has no checkpoint yet: starting at the beginning", out)
    if "validation" in changed:
        trainer.state.best_loss = None
    place = trainer.state.data
    if place.row >= trainer.batches.rows_per_epoch:  # of fewer data than the checkpoint's
        place = trainer.state.data = BatchState(place.epoch + 1, 0)
    if changed and distributed.is_first():
        logger.warning("going on with the new data at epoch %d, row %d", *place)
    return trainer


def _write_origin(config: Config, out: Path, data: PreparedData, resume: bool, accept_new_data: bool) -> list[str]:
    """Write what a run is made from; returns which of its data have changed since it began."""
    found = data.fingerprints()
    begun = begun_with(out) if resume and list_checkpoints(out) else found
    if changed := [name for name, digits in found.items() if begun.get(name, digits) != digits]:
        own = config.to_dict()["data"]
        field = "source" if changed != ["validation"] or own["validation"] is None else "validation"
        _refuse_or_warn(out, changed, accept_new_data, f"data.{field} is {own[field]!r}")
    replace_file(out / CONFIG_FILE, yaml.safe_dump(config.to_dict(), sort_keys=False))
    replace_file(out / DATA_FILE, json.dumps(found, indent=2))
    return changed


def begun_with(out: Path) -> dict[str, Any]:
    """The fingerprints in a run's data.json; empty, with a warning, where an older version wrote none."""
    path = out / DATA_FILE
    if not path.is_file():
        logger.warning("%s has no %s: whether its data are those that it began with is not known", out, DATA_FILE)
        return {}
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; without it, --resume compares nothing: {error}") from error


def _refuse_or_warn(out: Path, changed: list[str], accept_new_data: bool, where: str) -> None:
    names = {"train": "other training data", "validation": "other validation data", "tokenizer": "another tokenizer"}
    what = " and ".join(names[name] for name in changed)
    if not accept_new_data:
        raise ConfigError(
            f"{where}, but the run in {out} began with {what}: go back to that, choose another folder (--out), "
            "or go on with the new ones, encoded by the run's own tokenizer (--accept-new-data)"
        )
    if distributed.is_first():
        logger.warning("%s: the run in %s began with %s", where, out, what)


def check_same_data(data: PreparedData) -> None:
    """Raise a DataError unless all ranks, on whatever machines, have read the same data."""
    sizes = [(len(part), part.num_tokens, part.document_bytes) for part in data[1:] if part is not None]
    first, *others = distributed.gather((data.tokenizer.fingerprint(), sizes))
    for i, other in enumerate(others, start=1):
        if other != first:
            raise DataError(
                f"process {i} has other data than the first: (documents, tokens, bytes) are {other[1]}, "
                f"not {first[1]}; every machine must have the same files and tokenizer"
            )


def make_trainer(config: RunConfig, data: PreparedData, out: Path, callbacks: Iterable[Callback] = ()) -> Trainer:
    """The trainer of a run whose data are ready; the model is freshly initialised from the seed."""
    torch.manual_seed(config.train.seed)
    model = Decoder(config.model)
    torch.manual_seed(config.train.seed)  # so that dropout does not depend on how many numbers the model drew
    batches = Batches(
        data.train,
        batch_size=config.train.batch_size,
        context_length=config.model.context_length,
        mode=config.data.mode,
        padding_as_target=config.data.padding_as_target,
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
    batches.place(trainer.device)
    return trainer


def make_logs(config: TrainConfig, out: Path) -> list[Callback]:
    """The logs that every run writes."""
    logs: list[Callback] = [JsonlLog(out / METRICS_FILE)]
    if config.tensorboard:
        if tensorboard_available():
            logs.append(TensorBoard(out / "tensorboard"))
        else:
            logger.info("no TensorBoard log: pip install tensorboard")
    return logs


def check_folder(config: Config, out: Path, resume: bool, accept_new_data: bool = False) -> None:
    """Raise a ConfigError unless a run of this configuration can begin, or go on, in `out`."""
    if not resume:
        if list_checkpoints(out):
            raise ConfigError(f"{out} holds a run already: resume it (--resume), or choose another folder (--out)")
        return
    if (out / CONFIG_FILE).is_file():
        try:
            saved = type(config).from_dict(read_yaml(out / CONFIG_FILE)).to_dict()
        except ConfigError as error:
            raise ConfigError(f"{out / CONFIG_FILE} is damaged, or of another version: {error}") from error
        given = config.to_dict()
        for values in (saved, given):
            values["train"]["batch_size · gradient_accumulation"] = (
                values["train"]["batch_size"] * values["train"]["gradient_accumulation"]
            )
        for section, fields in given.items():
            for name, value in fields.items():
                allowed = name in FREE_ON_RESUME or (section == "data" and accept_new_data)
                if not allowed and saved[section][name] != value:
                    raise ConfigError(
                        f"{section}.{name} is {value!r}, but the run in {out} has {saved[section][name]!r}: "
                        "resume it with its own configuration, or choose another folder"
                    )
