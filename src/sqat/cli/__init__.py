"""The `sqat` command. Commands import what needs torch when they run, so that `--help` is quick."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from typing import Annotated, Any

import typer

from sqat.cli import bench, compare, convert, data_commands, demo, export, generate, hub, info, train, uptrain
from sqat.cli.console import FIRST, PROCESSES, RANK
from sqat.errors import SqatError
from sqat.version import __version__

app = typer.Typer(
    name="sqat",
    help="Sparse Query Attention transformers: train, compare and run them.",
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
app.command("push")(hub.push)
app.command("pull")(hub.pull)
app.add_typer(data_commands.tokenizer, name="tokenizer")
app.command("bench")(bench.bench)


_UsageError: Any = typer.BadParameter.__base__  # typer does not export it


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sqat {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line. Errors that a user can fix are printed as one line, without a traceback."""
    level = logging.WARNING if FIRST else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("sqat.data.text").setLevel(logging.INFO if FIRST else logging.ERROR)  # which files
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may contain characters that the terminal cannot show
    try:
        # Shells expand `~` only at the beginning of a word, and other callers (make, subprocess) do not at all.
        home = re.compile(r"^(--[\w-]+=|)(~(?:/.*)?)$", re.DOTALL)
        given = [home.sub(lambda m: m[1] + os.path.expanduser(m[2]), argument) for argument in sys.argv[1:]]
        sys.argv[1:] = given or ["--help"]
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        wrong = (
            error.__cause__.errors() if hasattr(error.__cause__, "errors") else []
        )  # pydantic's; typer drops the value
        _fail(" ".join([error.format_message(), *(f"(it is {problem['input']!r})" for problem in wrong)]), 2)
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    except SqatError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:  # a file that cannot be written, or an impossible name
        if error.errno is None:
            raise
        _fail(str(error))
    except MemoryError as error:
        _fail(f"out of memory {error}".strip())


def _fail(message: str, code: int = 1) -> None:
    typer.secho(f"error{f' of rank {RANK}' if PROCESSES > 1 else ''}: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(one_line(message), err=True)
    sys.exit(code)


def one_line(message: str) -> str:
    """A message as one line, with control characters escaped: it may quote names from untrusted files."""
    words = " ".join(message.split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in words)
