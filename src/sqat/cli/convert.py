"""`sqat convert`: a pretrained model with fewer query heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def convert(
    model: Annotated[str, typer.Argument(help="A stock checkpoint: a folder, or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    query_heads: Annotated[int | None, typer.Option(help="Query heads to keep, of a pretrained model.")] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="Key/value heads; default: the most that divide both numbers.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="fit (default): keep what explains most, fit the output; mean, select, cluster."),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="activation: by what heads do on --calibrate; norm: by weights.")
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA[:n]", help="Text to choose heads by; give it several times to mix kinds of text."),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=2, help="Tokens of it, in equal parts.")] = 20_480,
    verify: Annotated[str | None, typer.Option(metavar="DATA[:n]", help="Compare both on this text.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="a-b", help="Layers to convert, from 0; default: all.")] = None,
    to: Annotated[
        str | None,
        typer.Option(help="stock (default): its own architecture; transformers: with code beside it, for --layers."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens per row of calibration and verification; default: the model's, at most 512."),
    ] = None,
    layout: Annotated[str | None, typer.Option(hidden=True)] = None,  # of the former spelling of `sqat export`
) -> None:
    """Give a pretrained model fewer query heads, in its own stock architecture or, for some layers, with modelling
    code beside it (--to transformers).
    """
    from sqat.cli.export import export
    from sqat.errors import ConfigError

    if query_heads is None:
        options = {"--kv-heads": kv_heads, "--method": method, "--score": score, "--calibrate": calibrate or None}
        options |= {"--verify": verify, "--layers": layers, "--to": to, "--context": context}
        if given := [name for name, value in options.items() if value is not None]:
            raise ConfigError(f"--query-heads is missing, but must be the number to keep where {given[0]} is given")
        layout = layout or "rxnn"
        typer.echo(f"hint: without --query-heads this is now `sqat export {model} --to {layout} --out {out}`", err=True)
        export(Path(model), out, layout)
        return
    if layout is not None:
        raise ConfigError(f"--layout is {layout!r}, but goes without --query-heads: the architecture stays the model's")
    options = {"method": method, "score": score, "to": to, "kv_heads": kv_heads, "layers": layers}
    changes = {name: value for name, value in options.items() if value is not None} | {"query_heads": query_heads}
    convert_heads(model, out, changes, calibrate or [], calibration_tokens, verify, context or 512)


def convert_heads(
    name: str,
    out: Path,
    changes: dict[str, Any],
    calibrate: list[str],
    tokens: int,
    verify_on: str | None,
    context: int,
) -> None:
    """Write a pretrained model with fewer heads. Whatever can be refused is, before weights are read."""
    from sqat.checkpoint import write_folder
    from sqat.cli.console import progress
    from sqat.convert import choose_heads, convert, plan_conversion, verify
    from sqat.convert.files import locate, quiet, read_config, read_model, require_weights, write_conversion
    from sqat.convert.tokenizer import StockTokenizer, document_rows, token_rows
    from sqat.errors import ConfigError
    from sqat.folders import require_free

    require_free(out, "--out")
    folder = locate(name)
    config = read_config(folder)
    require_weights(folder, config)
    plan = plan_conversion(config, **changes)
    if plan.needs_calibration and not calibrate:
        raise ConfigError(f"--calibrate is missing, but {plan.calibration_reason}")
    if calibrate and not plan.needs_calibration:
        raise ConfigError(
            f"--calibrate is {', '.join(calibrate)}, but goes with --method fit, or select and cluster by activation"
        )
    most = getattr(config, "max_position_embeddings", None) or context + 1
    context, window = min(context, most), min(context + 1, most)  # as many targets as `sqat evaluate` has in a window
    size = config.vocab_size
    rows = token_rows(calibrate, StockTokenizer(folder), context, size, tokens=tokens) if calibrate else None
    texts = None if verify_on is None else document_rows(verify_on, StockTokenizer(folder), window, size)
    typer.echo(plan.summary())
    where = "" if plan.to == "stock" else f" in layers {plan.layers[0]}-{plan.layers[1]}"
    model = read_model(folder)
    with progress("choosing heads") as update:
        say = lambda done, count: update(f"{done} of {count} layers fitted", done, count)  # noqa: E731
        heads = choose_heads(model, plan, rows, progress=say)
    with quiet():
        result = convert(model, plan, heads=heads)
    verification = None if texts is None else verify(model, result, *texts)
    with write_folder(out) as temporary:
        write_conversion(result, plan, heads, folder, name, temporary, verification=verification, text=verify_on)
    if verification is not None:
        typer.echo(verification.summary())
    typer.echo(f"{name} written to {out} with {plan.after.query_heads} query heads{where} ({plan.method})")
