"""`sqat train` and `sqat evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sqat.cli import training

if TYPE_CHECKING:
    from sqat.run_config import RunConfig


def train(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset (`sqat info` lists them) or a YAML file, such as configs/stories-s.yaml (in sqat)."
        ),
    ],
    data: training.Data = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/MODEL.")] = None,
    validation: training.Validation = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json; default: trained on the data.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps, instead of epochs.")] = None,
    batch_size: training.BatchSize = None,
    lr: training.LearningRate = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and dropout.")] = None,
    device: training.Device = None,
    set_: training.Set = None,
    resume: training.Resume = False,
    accept_new_data: training.AcceptNewData = False,
) -> None:
    """Train a model on text; checkpoints, metrics and TensorBoard logs go to --out.

    Ctrl-C saves a checkpoint; the same command with --resume continues bit for bit like an uninterrupted run.
    """
    options = {
        "data.source": data,
        "data.validation": validation,
        "data.tokenizer": tokenizer,
        "train.epochs": epochs,
        "train.max_steps": steps,
        "train.batch_size": batch_size,
        "train.learning_rate": lr,
        "train.seed": seed,
        "train.device": device,
    }
    from sqat.train import start_run

    config, folder = read_run(model, training.overrides(options, set_)), out or Path("runs") / Path(model).stem
    training.run(start_run, config, folder, resume=resume, accept_new_data=accept_new_data)


def read_run(model: str, changes: list[str]) -> RunConfig:
    """The run that a preset or a YAML file describes, with `A.B=C` assignments applied."""
    from sqat.run_config import RunConfig, read_yaml, with_overrides

    values: dict[str, Any] = read_yaml(model) if model.endswith((".yaml", ".yml")) else {"model": model}
    return RunConfig.from_dict(with_overrides(values, changes))


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")],
    data: Annotated[
        str | None,
        typer.Option(help="Hub data set, folder, file, or `stories[:N]`; default: the run's own validation data."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the data; default: validation, or the whole of a single file.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Where the checkpoint has none.")] = None,
    field: Annotated[str | None, typer.Option(help="Column or key that holds the text; default: text.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many documents.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 64,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens per window; default: the model's.")] = None,
    padded: Annotated[bool, typer.Option("--padded", help="Also loss and accuracy counting padding.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print loss, perplexity, accuracy and bits per byte over real tokens, and what was scored."""
    from sqat.cli.console import errors, tokenising
    from sqat.data.text import open_source, split_within
    from sqat.data.tokens import cached_tokens
    from sqat.folders import run_of
    from sqat.load import load_with_tokenizer
    from sqat.train.evaluate import evaluate as evaluate_model
    from sqat.train.prepare import open_sources
    from sqat.train.run import DATA_FILE, begun_with
    from sqat.train.step import explain_out_of_memory

    model, text_tokenizer = load_with_tokenizer(checkpoint, tokenizer)
    run = run_of(checkpoint.expanduser().absolute())
    began: str | None = None
    if data is None and (run / "config.yaml").is_file():
        options = {"data.field": field, "data.validation_limit": limit}
        own = read_run(str(run / "config.yaml"), training.overrides(options, None)).data
        how: dict[str, Any] = {"field": own.field, "limit": limit, "encoding_errors": own.encoding_errors}
        source = open_sources(own)[1] if split is None else open_source(own.source, split, **how)
        if not (split or field or limit or tokenizer) and (run / DATA_FILE).is_file():
            began = begun_with(run).get("validation")
    else:
        spec = data or "stories"
        source = open_source(spec, split or split_within(spec, "validation"), field=field or "text", limit=limit)
    typer.echo(f"scoring {source.name}", err=True)
    with tokenising() as progress:
        tokens = cached_tokens(source, text_tokenizer, progress=progress)
    if began not in (None, tokens.digest):
        typer.echo(f"note: these are other validation data than the run in {run} began with", err=True)
    with explain_out_of_memory("evaluation", batch_size), errors.status(f"scoring {tokens.num_tokens:,} tokens …"):
        result = evaluate_model(model, tokens, batch_size=batch_size, context_length=context, padded_metrics=padded)
    record = {"data": source.name, **result.to_dict()}
    typer.echo(json.dumps(record) if as_json else f"{source.name}: {result.summary()}")
