"""What the commands of `catbreeds` share: options, exit codes, and how they say no."""

import enum
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import print_error
from pipeline.settings import Settings, SettingsError, load, profiles
from serving.names import printable

ProfileOption = Annotated[str, typer.Option(help=f"{' or '.join(profiles())}, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting.")]
WorkdirOption = Annotated[str | None, typer.Option(help="Everything a run writes lies below it.", show_default="runs")]
VersionArgument = Annotated[int, typer.Argument(help="Number of a pushed version; `catbreeds models` lists them.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


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
    if error.filename is None:
        return str(error)
    path = os.fsdecode(error.filename)
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError) and no_folder(path)
    return f"{path}: {in_the_way or error.strerror}"


def no_folder(path: str) -> str:
    """Why there can be no folder at `path`: what it is, or what one of the folders above it is; "" if nothing is."""
    for place in (path, *map(str, Path(path).parents)):
        name = "it" if place == path else place
        if os.path.islink(place) and not os.path.exists(place):
            return f"{name} is a link to {os.readlink(place)}, which does not exist"
        if os.path.exists(place):
            return "" if os.path.isdir(place) else f"{name} is not a folder"
    return ""


def on_this_machine(path: Path | None) -> Path | None:
    """Callback of options and arguments that take no address such as gs://bucket/folder, which `Path` makes gs:/bucket.

    Raises:
        BadParameter: it is one.
    """
    if path is not None and _ADDRESS.match(str(path)):
        raise typer.BadParameter(
            f"{str(path).replace(':/', '://', 1)}: must be a path of this machine; mount the bucket"
        )
    return path


def read_settings(
    profile: str, overrides: list[str] | None, *, check_workdir: bool = True, **options: str | None
) -> Settings:
    """Settings of a command; its own options are the last word. A command with --workdir needs a folder there."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        config = load(profile, overrides or [], os.environ, given)
    except SettingsError as error:
        raise fail(error) from None
    if check_workdir and "workdir" in options and (problem := no_folder(config.workdir)):
        raise fail(f"workdir: {printable(config.workdir)}: {printable(problem)}; choose another --workdir")
    return config
