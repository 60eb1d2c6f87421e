"""The `mtop` command.

Each command checks its arguments, calls one function of the package, and turns the outcome into an exit code:
0 done, 2 bad arguments, configuration or schema, 3 done but for unreadable source files, 4 computed but not published,
for the gate is closed, 1 any other failure.
Heavy imports wait until a command runs, so that `mtop --help` answers at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated

import typer

from mtop_batch import __version__
from mtop_batch.cli.experiments import build_families, build_glue, build_many, build_nhc, reproduce
from mtop_batch.cli.labelling import compare, label, labels, predict, publish, review, vacuum
from mtop_batch.cli.training import add_tasks, calibrate, drop_tasks, evaluate, prefinetune, select_tasks, train
from mtop_batch.errors import MtopError, one_line
from mtop_batch.lines import for_people

COMMANDS = (
    train,
    prefinetune,
    add_tasks,
    drop_tasks,
    calibrate,
    evaluate,
    select_tasks,
    label,
    labels,
    publish,
    compare,
    review,
    vacuum,
    predict,
    build_nhc,
    build_glue,
    build_many,
    build_families,
    reproduce,
)
"""In the order of `mtop --help`; each is called as its function, with `-` for `_`."""

app = typer.Typer(
    name="mtop",
    help="One model, one forward pass, every text-classification label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtop-batch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """One model, one forward pass, every text-classification label."""


for _command in COMMANDS:
    app.command(name=_command.__name__.replace("_", "-"))(_command)


def _quiet_libraries() -> None:
    """Keep transformers' bars and tips for loading a file out of the output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class _Stopped(BaseException):
    """The command was told to end. (KeyboardInterrupt would be click's, which says "Aborted".)

    Where it is raised while Ray's core waits, that makes a SystemError of it, with this as its cause.
    """


def _stop(*_: object) -> None:
    raise _Stopped


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error of the user's is one message, without a traceback."""
    # Job supervisors end a job with SIGTERM: it ends as with Ctrl-C, and `finally` blocks run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack characters that texts and file names have
            stream.reconfigure(errors="backslashreplace")
    try:
        _quiet_libraries()
        app(args=arguments, prog_name="mtop")
    except MtopError as error:
        if os.environ.get("MTOP_TRACEBACK"):
            raise
        typer.echo(f"error: {for_people(str(error))}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk behind standard output, for one
        if os.environ.get("MTOP_TRACEBACK"):
            raise
        typer.echo(f"error: {for_people(one_line(error))}", err=True)
        sys.exit(1)
    except (_Stopped, SystemError) as error:
        if not (isinstance(error, _Stopped) or isinstance(error.__cause__, _Stopped)):
            raise
        typer.echo("stopped; the same command goes on where it stopped", err=True)
        sys.exit(1)
