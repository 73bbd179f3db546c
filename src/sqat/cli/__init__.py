"""The `sqat` command. Modules that need torch are imported inside the commands, so that help answers at once."""

from __future__ import annotations

import logging
import sys

import typer

from sqat.cli import bench, compare, convert, data_commands, demo, export, generate, info, launched, train, uptrain
from sqat.errors import SqatError

app = typer.Typer(
    name="sqat",
    help="Sparse Query Attention transformers: train, compare and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("evaluate")(train.evaluate)
app.command("compare")(compare.compare)
app.command("generate")(generate.generate)
app.command("info")(info.info)
app.command("convert")(convert.convert)
app.command("uptrain")(uptrain.uptrain)
app.command("export")(export.export)
app.add_typer(data_commands.tokenizer, name="tokenizer")
app.add_typer(bench.bench, name="bench")


def main() -> None:
    """Run the command line; what a user can put right is printed as one line, without a traceback."""
    level = logging.WARNING if launched.FIRST else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        launched.check_command(sys.argv[1:])
        app()
    except SqatError as error:
        if launched.is_ours_to_say(error):
            typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
            typer.echo(str(error), err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        sys.exit(141)
