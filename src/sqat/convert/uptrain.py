"""Training a converted model back to what it was, with the trainer, checkpoints and resume of all training here."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sqat.convert.architectures import heads_of
from sqat.convert.distill import DistillationLoss, StockDecoder
from sqat.convert.files import locate, quiet, read_model
from sqat.convert.plan import DEFAULT_CONTEXT
from sqat.convert.tokenizer import StockTokenizer
from sqat.data.batches import Batches
from sqat.data.tokens import Progress, TokenFile
from sqat.errors import CheckpointError, ConfigError
from sqat.model_card import RECORD_FILE
from sqat.run_config import TrainConfig
from sqat.train.distributed import naming_lost_ranks
from sqat.train.evaluate import Evaluation, evaluate
from sqat.train.prepare import PreparedData, prepare_data
from sqat.train.run import begin_run, make_logs
from sqat.train.step import autocast
from sqat.train.trainer import Callback, Trainer
from sqat.uptrain_config import UptrainConfig


class Uptraining(Trainer):
    """Trains a stock model, `model`, in place; its checkpoints are stock checkpoints beside the run's state. Arguments
    as :class:`Trainer` and :class:`DistillationLoss`; `record`, a file that says how the student was converted, is
    copied into every checkpoint.
    """

    def __init__(
        self,
        model: StockDecoder,
        batches: Batches,
        config: TrainConfig,
        *,
        teacher: StockDecoder | None = None,
        kl_weight: float = 1.0,
        record: Path | None = None,
        **others: Any,
    ) -> None:
        self.student, self.teacher, self.kl_weight, self.record = model, teacher, kl_weight, record
        as_decoder: Any = model  # it has what the loop asks of one
        super().__init__(as_decoder, batches, config, **others)

    def make_task(self) -> DistillationLoss:
        if self.teacher is not None:
            self.teacher.to(self.device).eval().requires_grad_(False)
        config = self.config
        routers = config.router_loss, config.router_loss_weight
        return DistillationLoss(self.student, self.teacher, self.kl_weight, *routers, compiled=config.compile)

    def measure(self, validation: TokenFile) -> Evaluation:
        return evaluate(
            self.model,
            validation,
            batch_size=self.config.batch_size,
            padded_metrics=False,  # these count the padding token of this package's tokenizers
            autocast=autocast(self.config.precision, self.device.type),
        )

    def write_model(self, model: StockDecoder, folder: Path) -> None:
        with quiet():
            model.model.save_pretrained(folder)
        if self.record is not None:
            shutil.copyfile(self.record, folder / RECORD_FILE)

    def load_weights(self, checkpoint: Path) -> None:
        saved, own = read_model(checkpoint, dtype=None), self.student.model
        found, expected = ({n: p.shape for n, p in model.named_parameters()} for model in (saved, own))
        if found != expected:
            raise CheckpointError(
                f"{checkpoint} is of another model than this run's: {saved.config.model_type} with "
                f"{heads_of(saved.config)}, but must be {own.config.model_type} with {heads_of(own.config)}"
            )
        own.load_state_dict(saved.state_dict())


@naming_lost_ranks()
def start_uptraining(
    config: UptrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    accept_new_data: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: Progress | None = None,
) -> Uptraining:
    """Prepare a run in folder `out`; call `.train()` on the result. Arguments as :func:`sqat.train.start_run`.

    Weights are trained in float32 (with bfloat16 autocast by `train.precision`), whatever type the checkpoint has.

    Raises:
        ConfigError: `out` holds a run and `resume` is false, or a run of another configuration, or one that is going on
            in another process; student and teacher have different vocabularies; rows longer than either model takes.
        DataError, CheckpointError: data or checkpoints cannot be read.
    """
    out = Path(out).expanduser()

    Parts = tuple[StockDecoder, StockDecoder | None, PreparedData]

    def prepare(_: bool) -> Parts:
        student, teacher, tokenizer = _models(config)
        size = student.config.vocab_size
        return student, teacher, prepare_data(config.data, size, tokenizer=tokenizer, progress=progress)

    def make(parts: Parts) -> Uptraining:
        student, teacher, data = parts
        record = locate(config.model.path) / RECORD_FILE
        batches = Batches(
            data.train,
            batch_size=config.train.batch_size,
            context_length=student.config.context_length,
            mode=config.data.mode,
            seed=config.train.seed,
        )
        torch.manual_seed(config.train.seed)
        trainer = Uptraining(
            student,
            batches,
            replace(config.train, max_steps=steps_for(config.model.tokens, batches, config.train)),
            teacher=teacher,
            kl_weight=config.model.kl_weight,
            record=record if record.is_file() else None,
            validation=data.validation,
            out=out,
            tokenizer=data.tokenizer,
            callbacks=[*make_logs(config.train, out), *callbacks],
        )
        batches.place(trainer.device)
        return trainer

    return begin_run(config, out, resume, accept_new_data, prepare, make)


def steps_for(tokens: int, batches: Batches, config: TrainConfig) -> int:
    """How many steps have about that many training targets; at least one."""
    epoch = batches.tokens.num_tokens - len(batches.tokens)  # the first token of a document is no target
    per_step = epoch / math.ceil(len(batches) / config.gradient_accumulation)
    return max(1, round(tokens / per_step))


def _models(config: UptrainConfig) -> tuple[StockDecoder, StockDecoder | None, Any]:
    folder = locate(config.model.path)
    student = _decoder(folder, config)
    teacher = None if config.model.teacher is None else _decoder(locate(config.model.teacher), config)
    if teacher is not None and teacher.config.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"model.teacher is {config.model.teacher!r} with a vocab_size of {teacher.config.vocab_size}, but must "
            f"have the student's: {student.config.vocab_size}"
        )
    return student, teacher, StockTokenizer(folder)


def _decoder(folder: Path, config: UptrainConfig) -> StockDecoder:
    model = read_model(folder, dtype=torch.float32)
    own, wanted = getattr(model.config, "max_position_embeddings", None), config.model.context_length
    if own is not None and wanted is not None and wanted > own:
        raise ConfigError(
            f"model.context_length (--context) is {wanted}, but must be at most {own}, the max_position_embeddings of "
            f"the model in {folder}"
        )
    return StockDecoder(model, wanted or min(own or DEFAULT_CONTEXT, DEFAULT_CONTEXT))
