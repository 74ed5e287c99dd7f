"""The command `schema update`."""

import re
import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.cli.common import (
    Exit,
    ProfileOption,
    SetOption,
    WorkdirOption,
    fail,
    on_this_machine,
    read_settings,
    told,
)
from pipeline.cli.workdir import check_paths, in_workdir, run_components
from pipeline.settings import Settings, SettingsError

app = typer.Typer()
schema_app = typer.Typer(help="What photos must look like.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")


@schema_app.command("update")
def schema_update(
    data: Annotated[str, typer.Option(help="Folder or archive of photos, one folder a breed.")],
    schema: Annotated[
        Path | None,
        typer.Option(
            callback=on_this_machine,
            help="Folder of the schema.",
            show_default="photos_schema, or schemas/<name of the data>",
        ),
    ] = None,
    profile: ProfileOption = "standard",
    workdir: WorkdirOption = None,
    settings: SetOption = None,
) -> None:
    """Write the schema of a data set, for review: its breeds are added, bounds set by hand stay."""
    config = read_settings(profile, settings, data=data, workdir=workdir)
    check_paths(config)
    name = re.sub(r"\W+", "_", Path(data).name.split(".")[0].lower()) or "photos"
    folder = schema or Path(config.photos_schema or f"schemas/{name}")
    _check_schema(folder)
    raise typer.Exit(in_workdir(config, lambda *about: _update_schema(config, folder, *about)))


def _check_schema(folder: Path) -> None:
    """Refuses a schema that cannot be updated before photos are read, which takes long."""
    from pipeline.datasets.schema_file import SCHEMA_FILE, read_schema

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if (folder / SCHEMA_FILE).exists():
            read_schema(folder / SCHEMA_FILE)
    except OSError as error:
        raise fail(f"{told(error)}; --schema must be a folder that can be written") from None
    except ValueError as error:
        raise fail(f"{folder / SCHEMA_FILE}: cannot be read: {error}") from None


def _update_schema(config: Settings, folder: Path, run_id: str, log: Path, console: Console) -> Exit:
    runs = run_components(config, run_id, log, console, only_ingestion=True)
    if isinstance(runs, Exit):
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
    lines += [f"  kept {breed!r}, of which the data has no photo" for breed in update.unused]
    following = ["catbreeds", "run", "--data", config.data, "--set", f"photos_schema={folder}"]
    lines.append(f"Review it, then: {shlex.join(following)}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return Exit.DONE
