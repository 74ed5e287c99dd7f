"""The commands `run` and `report`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from components.errors import DamagedFileError, WeightsError
from pipeline.cli.common import (
    ExitCode,
    ProfileOption,
    SetOption,
    WorkdirOption,
    command_with_renamed_options,
    fail,
    os_error_message,
    read_settings,
)
from pipeline.cli.workdir import check_paths, run_components, run_in_workdir
from pipeline.settings import Settings, to_yaml
from serving import precision
from serving.names import counted
from serving.precision import PrecisionError

app = typer.Typer()


@app.command()
def run(
    data: Annotated[str | None, typer.Option(help="Folder or archive of photos, with one folder per breed.")] = None,
    profile: ProfileOption = "standard",
    workdir: WorkdirOption = None,
    settings: SetOption = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as YAML and exit.")] = False,
) -> None:
    """Run the pipeline on this machine: train and compare models, and push the best one if it passes the gate.

    Components whose inputs have not changed since an earlier run are not executed again.

    Exit code: 0 pushed or nothing new, 1 failure, 2 invalid usage or data, 3 rejected by the gate.
    """
    config = read_settings(profile, settings, data=data, workdir=workdir)
    if print_config:
        print(to_yaml(config), end="")
        return
    if not config.data:
        raise fail("no photos given; pass --data FOLDER, where FOLDER has one folder of photos per breed")
    check_paths(config)
    try:
        config.check_model_files()
        config = config.model_copy(update={"precision": precision.resolve(config.precision)})
    except (WeightsError, PrecisionError) as error:
        raise fail(error) from None
    raise typer.Exit(run_in_workdir(config, lambda *context: _run(config, *context)))


@app.command(cls=command_with_renamed_options({"--data": "--photos"}))
def report(
    workdir: WorkdirOption = None,
    photos: Annotated[
        bool,
        typer.Option("--photos", help="Show the photos instead: number per breed and split, and every excluded file."),
    ] = False,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Show the results of the last run and the path of its HTML report."""
    from pipeline.console import console_on
    from pipeline.results import report as reports

    folder = Path(read_settings(profile, settings, workdir=workdir).workdir) / "report"
    console = console_on(sys.stdout)
    try:
        # Render everything before printing, so that only errors in the files are reported as damage.
        with console.capture() as rendered:
            reports.show_saved(console, folder, photos)
    except FileNotFoundError as error:
        raise fail(f"{error.filename}: not found; `catbreeds run` writes it") from None
    except OSError as error:
        raise fail(os_error_message(error)) from None
    except DamagedFileError as error:
        raise fail(f"{error}; `catbreeds run` writes it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise fail(f"{folder}: a file is damaged ({error!r}); `catbreeds run` writes it again") from None
    print(rendered.get(), end="")


def _run(config: Settings, run_id: str, log: Path, console: Console) -> ExitCode:
    text = f"catbreeds run {run_id} in {config.workdir}; log: {log}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    runs = run_components(config, run_id, log, console)
    return runs if isinstance(runs, ExitCode) else _report_run(config, run_id, runs, console)


def _report_run(config: Settings, run_id: str, runs: dict[str, Any], console: Console) -> ExitCode:
    from components.file_names import ROLLOUT_FILE
    from components.json_files import read_json
    from pipeline.results import report

    documents = report.collect(runs, config, run_id)
    page = report.write(Path(config.workdir) / "report", documents)
    executed = sum(not run.cached for run in runs.values())
    console.print(f"{counted(executed, 'component')} run, {len(runs) - executed} cached.", highlight=False)
    report.show(console, documents)
    if "Rollout" in runs:
        outcome = read_json(runs["Rollout"].outputs["outcome"], ROLLOUT_FILE)["outcome"]
        console.print(f"Rollout: {outcome}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)
    return ExitCode.REJECTED if documents["gate"]["outcome"] == "refused" else ExitCode.SUCCESS
