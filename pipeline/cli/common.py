"""Options, exit codes and error handling that the `catbreeds` commands share."""

import dataclasses
import enum
import functools
import inspect
import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.console import print_error
from pipeline.settings import Settings, SettingsError, load, profiles
from serving.names import printable

ProfileOption = Annotated[
    str, typer.Option(help=f"Settings profile: {', '.join(profiles())}, or the path of a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeat the option for more."),
]
WorkdirOption = Annotated[
    str | None,
    typer.Option(help="Folder for all outputs: artifacts, models, logs, report.", show_default="runs"),
]
VersionArgument = Annotated[int, typer.Argument(help="Version of the model; `catbreeds models` lists them.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class ExitCode(enum.IntEnum):
    """Exit codes of the commands."""

    SUCCESS = 0
    FAILURE = 1
    INVALID_INPUT = 2
    REJECTED = 3


def fail(message: object, code: int = ExitCode.INVALID_INPUT) -> typer.Exit:
    """Print an error and return the exception that ends the command, for the caller to raise."""
    print_error(f"catbreeds: {message}")
    return typer.Exit(code)


def os_error_message(error: OSError) -> str:
    """Return `<file>: <reason>`, or Python's own message if the error has no file name."""
    if error.filename is None:
        return str(error)
    path = os.fsdecode(error.filename)
    conflict = isinstance(error, FileExistsError | NotADirectoryError) and folder_conflict(path)
    return f"{path}: {conflict or error.strerror}"


def folder_conflict(path: str) -> str:
    """Return why no folder can be created at `path`: it or one of its parents is another kind of file; else "".

    An existing folder is not a conflict.
    """
    for candidate in (path, *map(str, Path(path).parents)):
        subject = "" if candidate == path else f"{candidate} is "
        if os.path.islink(candidate) and not os.path.exists(candidate):
            return f"{subject}a symbolic link to {os.readlink(candidate)}, which does not exist"
        if os.path.exists(candidate):
            return "" if os.path.isdir(candidate) else f"{subject}not a folder"
    return ""


def require_local_path(path: Path | None) -> Path | None:
    """Typer callback that rejects URLs such as gs://bucket/folder, which `Path` changes to gs:/bucket/folder.

    Raises:
        BadParameter: If the path is a URL.
    """
    if path is not None and _URL.match(str(path)):
        raise typer.BadParameter(f"{str(path).replace(':/', '://', 1)}: must be a local path; mount the bucket")
    return path


CapturesOption = Annotated[
    Path | None,
    typer.Option(
        envvar="CATBREEDS_GATEWAY_CAPTURE_FOLDER",
        callback=require_local_path,
        help="Folder of the captures.",
        show_default=False,
    ),
]


def read_settings(
    profile: str, overrides: list[str] | None, *, check_workdir: bool = True, **options: str | None
) -> Settings:
    """Return the settings of a command.

    Args:
        profile: Name of a profile, or path of a YAML file.
        overrides: Values of `--set`.
        check_workdir: Whether to reject a workdir that is not a folder.
        **options: Settings with an option of their own, such as `workdir`; they override everything else.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        config = load(profile, overrides or [], os.environ, given)
    except SettingsError as error:
        raise fail(error) from None
    if check_workdir and "workdir" in options and (conflict := folder_conflict(config.workdir)):
        raise fail(f"workdir: {printable(config.workdir)}: {printable(conflict)}; choose another --workdir")
    return config


def require_captures(captures: Path | None) -> Path:
    """Return the folder of the captures; end the command if there is none."""
    if captures is None:
        raise fail("pass --captures with the folder of the captures, or set CATBREEDS_GATEWAY_CAPTURE_FOLDER")
    if not captures.is_dir():
        conflict = folder_conflict(str(captures)) or "no such folder; the gateway creates it with the first capture"
        raise fail(f"captures: {printable(str(captures))}: {conflict}")
    return captures


def command_with_renamed_options(renamed: Mapping[str, str]) -> type[TyperCommand]:
    """Return a command class that rejects the former names of options and prints the current ones.

    Args:
        renamed: Former name -> current name, such as {"--data": "--photos"}.
    """

    class CommandWithRenamedOptions(TyperCommand):
        def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
            for argument in itertools.takewhile(lambda argument: argument != "--", args):
                former_name = argument.partition("=")[0]
                if former_name in renamed:
                    raise fail(f"{former_name}: this option was renamed; use {renamed[former_name]}")
            return super().parse_args(ctx, args)

    return CommandWithRenamedOptions


def expand_option_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for commands that share options: each parameter that is a dataclass becomes one option per field.

    Typer reads options only from the signature of a function.
    """
    signature = inspect.signature(command, eval_str=True)
    groups = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters.extend(inspect.signature(groups[name], eval_str=True).parameters.values())
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def with_groups(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        return command(**values)

    with_groups.__signature__ = signature.replace(parameters=parameters)
    return with_groups
