"""`sqat generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqat.data.tokenizer import Tokenizer
    from sqat.generate import SamplingConfig
    from sqat.model import Decoder


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run's folder (its best checkpoint).")],
    prompt: Annotated[str | None, typer.Argument(help="How the text begins; `-` reads it from standard input.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file with one prompt a line (`-`: standard input), answered together.")
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=10_000, help="Answers per prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that reach this probability.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Only tokens this likely, relative to the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same text every time.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text to stop before; may be given several times.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Where the checkpoint has none.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts at a time; default: what half a gigabyte holds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer.")] = False,
) -> None:
    """Write text. One answer streams as it is made; several, and --json, come when they are done."""
    from sqat.generate import SamplingConfig, generate_each
    from sqat.load import load_with_tokenizer

    config = SamplingConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
        stop=tuple(stop or ()),
    )
    texts = _read_prompts(prompt, prompts)
    model, text_tokenizer = load_with_tokenizer(checkpoint, tokenizer)
    if len(texts) == number == 1 and not as_json:
        print_stream(model, text_tokenizer, texts[0], config)
        return
    each = [text for text in texts for _ in range(number)]
    for answer in generate_each(model, text_tokenizer, each, config, batch_size=batch_size):
        if as_json:
            facts = {"tokens": len(answer.tokens), "finish_reason": answer.finish_reason}
            typer.echo(json.dumps({"prompt": answer.prompt, "text": answer.text, **facts}, ensure_ascii=False))
        else:
            typer.echo(f"{answer.prompt}{answer.text}\n")
        sys.stdout.flush()


def print_stream(model: Decoder, tokenizer: Tokenizer, prompt: str, config: SamplingConfig) -> None:
    """The prompt, then its continuation piece by piece."""
    from sqat.generate import stream

    typer.echo(prompt, nl=False)
    for piece in stream(model, tokenizer, prompt, config):
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()


def _read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    from sqat.errors import ConfigError

    if file is None:
        return [sys.stdin.read().removeprefix("\ufeff").rstrip("\n") if prompt == "-" else prompt or ""]
    if prompt is not None:
        raise ConfigError(f"both a prompt ({prompt!r}) and --prompts ({file}) are given: use one of them")
    if str(file) != "-" and not file.is_file():
        raise ConfigError(f"--prompts is {file}, but there is no such file")
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts {file} is not UTF-8: {error}") from error
    if not (lines := [line for line in text.removeprefix("\ufeff").split("\n") if line.strip()]):
        raise ConfigError(f"--prompts {file} holds no prompt: write one a line")
    return lines
