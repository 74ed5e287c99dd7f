"""The command `schema update`."""

import re
import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.cli.common import (
    ExitCode,
    ProfileOption,
    SetOption,
    WorkdirOption,
    fail,
    os_error_message,
    read_settings,
    require_local_path,
)
from pipeline.cli.workdir import check_paths, run_components, run_in_workdir
from pipeline.settings import Settings, SettingsError

app = typer.Typer()
schema_app = typer.Typer(help="Manage the schema that photos are validated against.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")


@schema_app.command("update")
def schema_update(
    data: Annotated[str, typer.Option(help="Folder or archive of photos, with one folder per breed.")],
    schema: Annotated[
        Path | None,
        typer.Option(
            callback=require_local_path,
            help="Folder of the schema.",
            show_default="the setting photos_schema, or schemas/<name of the data>",
        ),
    ] = None,
    profile: ProfileOption = "standard",
    workdir: WorkdirOption = None,
    settings: SetOption = None,
) -> None:
    """Add the breeds of a data set to its schema, for review. Bounds that were set by hand are kept."""
    config = read_settings(profile, settings, data=data, workdir=workdir)
    check_paths(config)
    name = re.sub(r"\W+", "_", Path(data).name.split(".")[0].lower()) or "photos"
    folder = schema or Path(config.photos_schema or f"schemas/{name}")
    _check_schema(folder)
    raise typer.Exit(run_in_workdir(config, lambda *context: _update_schema(config, folder, *context)))


def _check_schema(folder: Path) -> None:
    """End the command if the schema cannot be read or written, before the slow ingestion starts."""
    from pipeline.datasets.schema_file import SCHEMA_FILE, read_schema

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if (folder / SCHEMA_FILE).exists():
            read_schema(folder / SCHEMA_FILE)
    except OSError as error:
        raise fail(f"{os_error_message(error)}; --schema must be a writable folder") from None
    except ValueError as error:
        raise fail(f"{folder / SCHEMA_FILE}: cannot be read: {error}") from None


def _update_schema(config: Settings, folder: Path, run_id: str, log: Path, console: Console) -> ExitCode:
    runs = run_components(config, run_id, log, console, only_ingestion=True)
    if isinstance(runs, ExitCode):
        return runs
    from components.errors import DataError
    from pipeline.datasets.schema_update import update_schema
    from pipeline.results import report
    from pipeline.run_context import photos_schema

    ingest = report.read_ingest(runs["ImageExampleGen"])
    breeds = ingest["breeds"]
    try:
        update = update_schema(folder, photos_schema(config), breeds)
    except (SettingsError, DataError, OSError) as error:
        raise fail(error) from None
    lines = [f"Warning: {warning}" for warning in ingest["warnings"]]
    lines += [f"{update.path}: {len(breeds)} breeds in the data"]
    lines += [f"  added {breed!r}" for breed in update.added]
    lines += [f"  kept {breed!r}, which has no photos in the data" for breed in update.unused]
    next_command = ["catbreeds", "run", "--data", config.data, "--set", f"photos_schema={folder}"]
    lines.append(f"Review it, then: {shlex.join(next_command)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return ExitCode.SUCCESS
