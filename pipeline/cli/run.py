"""The commands `run` and `report`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from components.errors import DamagedFileError
from pipeline.cli.common import Exit, ProfileOption, SetOption, WorkdirOption, fail, read_settings, told
from pipeline.cli.workdir import check_paths, in_workdir, run_components
from pipeline.settings import Settings, to_yaml
from serving.names import counted

app = typer.Typer()


@app.command()
def run(
    data: Annotated[str | None, typer.Option(help="Folder or archive of photos, one folder a breed.")] = None,
    profile: ProfileOption = "standard",
    workdir: WorkdirOption = None,
    settings: SetOption = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the settings and stop.")] = False,
) -> None:
    """Train, compare, gate and push, on this machine; only what changed since the last run is done again.

    Exit code: 0 pushed or nothing new, 3 the gate refused, 2 wrong usage or data, 1 failure.
    """
    config = read_settings(profile, settings, data=data, workdir=workdir)
    if print_config:
        print(to_yaml(config), end="")
        return
    if not config.data:
        raise fail("no photos: say --data FOLDER, a folder with one folder of photos for each breed")
    check_paths(config)
    raise typer.Exit(in_workdir(config, lambda *about: _run(config, *about)))


@app.command()
def report(
    workdir: WorkdirOption = None,
    data: Annotated[bool, typer.Option("--data", help="The photos: counts, and every file left out.")] = False,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Show what the last run found, and where its report is."""
    from pipeline.console import console_on
    from pipeline.results import report as reports

    folder = Path(read_settings(profile, settings, workdir=workdir).workdir) / "report"
    console = console_on(sys.stdout)
    try:
        # First all of it: what goes wrong here is in the documents, what goes wrong in printing is not.
        with console.capture() as shown:
            reports.show_saved(console, folder, data)
    except FileNotFoundError as error:
        raise fail(f"{error.filename}: not there; `catbreeds run` writes it") from None
    except OSError as error:
        raise fail(told(error)) from None
    except DamagedFileError as error:
        raise fail(f"{error}; `catbreeds run` writes it anew") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise fail(f"{folder}: a document there is damaged ({error!r}); `catbreeds run` writes it anew") from None
    print(shown.get(), end="")


def _run(config: Settings, run_id: str, log: Path, console: Console) -> Exit:
    text = f"catbreeds run {run_id} in {config.workdir}; log: {log}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    runs = run_components(config, run_id, log, console)
    return runs if isinstance(runs, Exit) else _finish(config, run_id, runs, console)


def _finish(config: Settings, run_id: str, runs: dict[str, Any], console: Console) -> Exit:
    from components.file_names import ROLLOUT_FILE
    from components.json_files import read_json
    from pipeline.results import report

    documents = report.collect(runs, config, run_id)
    page = report.write(Path(config.workdir) / "report", documents)
    ran = sum(not run.cached for run in runs.values())
    console.print(f"{counted(ran, 'component')} run, {len(runs) - ran} cached.", highlight=False)
    report.show(console, documents)
    if "Rollout" in runs:
        outcome = read_json(runs["Rollout"].outputs["outcome"], ROLLOUT_FILE)["outcome"]
        console.print(f"Rollout: {outcome}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)
    return Exit.REFUSED if documents["gate"]["outcome"] == "refused" else Exit.DONE
