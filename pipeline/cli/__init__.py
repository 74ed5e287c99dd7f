"""The `catbreeds` command. Only the commands that need TensorFlow import it, so that the others start quickly."""

import errno
import os
import sys
import warnings

import typer

from pipeline.cli import data, doctor, drift, inbox, kubeflow, models, predict, promote, run, schema, serving
from pipeline.cli.common import ExitCode, fail, os_error_message

app = typer.Typer(
    help="Train a cat breed classifier from a folder of photos, gate it, release it and serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _group in (data, run, schema, models, doctor, promote, kubeflow, serving, predict, drift, inbox):
    app.add_typer(_group.app)


def main() -> None:
    """Entry point of the console script."""
    _open_closed_standard_streams()
    _neutralise_environment()
    # File names are not always valid UTF-8, and terminals with other encodings lack many characters.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        # An error about a file, or a full disk, is a problem of the user's input; any other is a bug.
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        fail(os_error_message(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes stdout at exit, which would fail again
        sys.exit(ExitCode.INVALID_INPUT)


def _neutralise_environment() -> None:
    """Override environment variables that would turn library warnings into errors or open a plot window."""
    os.environ["MPLBACKEND"] = "agg"
    if os.environ.pop("PYTHONWARNINGS", ""):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # Python's default filters


def _open_closed_standard_streams() -> None:
    """Reopen standard streams that the caller closed, as with `>&-`, so that no other file gets their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `number`
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
