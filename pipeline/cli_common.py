"""What the commands of `catbreeds` share: options, exit codes, and how they say no."""

import enum
import os
from typing import Annotated

import typer

from pipeline.console import print_error
from pipeline.settings import Settings, SettingsError, load, profiles

ProfileOption = Annotated[str, typer.Option(help=f"{' or '.join(profiles())}, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting.")]
WorkdirOption = Annotated[str | None, typer.Option(help="Everything a run writes lies below it.", show_default="runs")]
VersionArgument = Annotated[int, typer.Argument(help="Number of a pushed version; `catbreeds models` lists them.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


class Exit(enum.IntEnum):
    """What the exit code of a command means."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    REFUSED = 3


def fail(message: object, code: int = Exit.WRONG_INPUT) -> typer.Exit:
    """Says what is wrong on stderr; raise what it gives."""
    print_error(f"catbreeds: {message}")
    return typer.Exit(code)


def told(error: OSError) -> str:
    """The file and what is wrong with it; Python's own text where the error names no file."""
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename is not None else str(error)


def read_settings(profile: str, overrides: list[str] | None, **options: str | None) -> Settings:
    """Settings of a command; its own options are the last word."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return load(profile, overrides or [], os.environ, given)
    except SettingsError as error:
        raise fail(error) from None
