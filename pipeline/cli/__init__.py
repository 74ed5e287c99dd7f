"""The `catbreeds` command. TensorFlow is imported by the commands that need it, so that the others answer at once."""

import errno
import os
import sys
import warnings

import typer

from pipeline.cli import data, doctor, kubeflow, models, rollout, run, schema, serving
from pipeline.cli.common import Exit, fail, told

app = typer.Typer(
    help="From a folder of cat photos to a breed classifier, trained, gated and served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _group in (data, run, schema, models, doctor, rollout, kubeflow, serving):
    app.add_typer(_group.app)


def main() -> None:
    """Entry point of the console script."""
    _open_standard_streams()
    _forget_settings_of_other_projects()
    # Some file names, and on a terminal that is not UTF-8 many characters, cannot be written as they are.
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What names a file, or happens while one is written, is no bug: the place cannot be used.
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        fail(told(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left cannot be written either
        sys.exit(Exit.WRONG_INPUT)


def _forget_settings_of_other_projects() -> None:
    """Libraries that commands import give warnings, which must not be errors; and no command opens a window."""
    os.environ["MPLBACKEND"] = "agg"
    if os.environ.pop("PYTHONWARNINGS", ""):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does without the variable


def _open_standard_streams() -> None:
    """Opens those that the caller has closed, as `>&-` does: a file that is opened later would take their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
