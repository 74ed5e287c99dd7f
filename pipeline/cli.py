"""The `catbreeds` command. TensorFlow is imported by the commands that need it, so that the others answer at once."""

import datetime
import errno
import gc
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from components.errors import DocumentError
from pipeline import cli_data, cli_doctor, cli_kubeflow, cli_models, cli_rollout, cli_serving
from pipeline.cli_common import (
    Exit,
    ProfileOption,
    SetOption,
    WorkdirOption,
    fail,
    on_this_machine,
    read_settings,
    told,
)
from pipeline.settings import Settings, SettingsError, to_yaml
from serving import proxies
from serving.names import counted, is_one_line, is_utf_8, printable
from serving.registry import RegistryError

# Below a folder with such characters TensorFlow and Beam find other files, or none: they take paths for patterns.
_PATTERN_CHARACTERS = frozenset("*?[]\\")

app = typer.Typer(
    help="From a folder of cat photos to a breed classifier, trained, gated and served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


schema_app = typer.Typer(help="What photos must look like.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")

app.add_typer(cli_models.app)
app.add_typer(cli_doctor.app)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_rollout.app)
app.add_typer(cli_kubeflow.app)
app.add_typer(cli_serving.app)


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


@app.command()
def sample_data(
    out: Annotated[
        Path, typer.Argument(callback=on_this_machine, help="Folder to write; one folder a breed is made in it.")
    ],
    breeds: Annotated[int, typer.Option(help="Number of imaginary breeds.")] = 6,
    photos: Annotated[int, typer.Option(help="Photos of each breed.")] = 40,
    first: Annotated[int, typer.Option(help="Number of the first photo: later ones are photos unseen before.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same photos.")] = 0,
    defects: Annotated[bool, typer.Option("--defects", help="Add a bad file of every kind.")] = False,
) -> None:
    """Draw photos of imaginary cat breeds."""
    from pipeline.sample_data import write_sample_data

    bad = []
    try:
        paths = write_sample_data(out, breeds=breeds, photos=photos, seed=seed, first=first)
        if defects:
            from components.splits import split_of
            from pipeline.defects import write_defects

            deal = Settings().split
            bad = write_defects(out, paths, lambda hash: split_of(hash, deal.train, deal.eval, deal.seed), seed=seed)
    except (ValueError, OSError) as error:
        raise fail(told(error) if isinstance(error, OSError) else error) from None
    print(f"{counted(len(paths), 'photo')} of {breeds} imaginary breeds in {out}")
    for path, kind in bad:
        print(f"{path.relative_to(out)}: {kind}")


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
    _check_places(config)
    raise typer.Exit(_in_workdir(config, lambda *about: _run(config, *about)))


@app.command()
def report(
    workdir: WorkdirOption = None,
    data: Annotated[bool, typer.Option("--data", help="The photos: counts, and every file left out.")] = False,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
) -> None:
    """Show what the last run found, and where its report is."""
    from pipeline import report as reports
    from pipeline.console import console_on

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
    except DocumentError as error:
        raise fail(f"{error}; `catbreeds run` writes it anew") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise fail(f"{folder}: a document there is damaged ({error!r}); `catbreeds run` writes it anew") from None
    print(shown.get(), end="")


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
    _check_places(config)
    name = re.sub(r"\W+", "_", Path(data).name.split(".")[0].lower()) or "photos"
    folder = schema or Path(config.photos_schema or f"schemas/{name}")
    _check_schema(folder)
    raise typer.Exit(_in_workdir(config, lambda *about: _update_schema(config, folder, *about)))


@app.command("compile")
def compile_(
    profile: Annotated[
        list[str] | None, typer.Option(help="Profiles to compile.", show_default="standard and smoke")
    ] = None,
    output: Annotated[Path, typer.Option(callback=on_this_machine, help="Folder for the specifications.")] = Path(
        "kfp_specs"
    ),
    settings: SetOption = None,
) -> None:
    """Compile the pipeline for Kubeflow Pipelines and Vertex AI: <profile>.yaml with its two specifications."""
    configs = {Path(name).stem: read_settings(name, settings) for name in profile or ("standard", "smoke")}
    with tempfile.TemporaryDirectory() as noise, _quiet(Path(noise) / "compile.log"):
        from pipeline.kubeflow_runner import write_pipeline

        try:
            for name, config in configs.items():
                write_pipeline(config, output / f"{name}.yaml")
        except SettingsError as error:
            raise fail(error) from None
        except OSError as error:
            raise fail(f"{told(error)}; --output must be a folder that can be written") from None
    for name in configs:
        print(output / f"{name}.yaml")


def _quiet(log: Path):
    from pipeline.console import noise_to

    return noise_to(log)


def _check_places(config: Settings) -> None:
    """Refuses paths that TensorFlow or TFX cannot use, before they are imported, which takes long."""
    for name in ("data", "workdir", "weights_dir", "photos_schema"):
        place = getattr(config, name)
        if place and "\0" not in place:
            whole = place if "://" in place else os.path.realpath(place)
            if not is_utf_8(whole):
                raise fail(f"{name}: {printable(whole)}: the path is not UTF-8; rename its folders")
    workdir = os.path.realpath(config.workdir)
    if not is_one_line(workdir) or not _PATTERN_CHARACTERS.isdisjoint(workdir):
        raise fail(
            f"workdir: {printable(workdir)}: the whole path must have no control characters and none of "
            f"{' '.join(sorted(_PATTERN_CHARACTERS))}; choose another --workdir"
        )
    if "://" not in config.data:
        try:
            os.stat(config.data)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise fail(
                f"data: {printable(config.data)}: no such folder or archive; "
                "it must hold one folder of photos for each breed"
            ) from None
        except OSError as error:
            raise fail(f"data: {printable(config.data)}: cannot be opened: {error.strerror}") from None


def _check_schema(folder: Path) -> None:
    """Refuses a schema that cannot be updated before photos are read, which takes long."""
    from pipeline.schema_file import SCHEMA_FILE, read_schema

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


def _in_workdir(config: Settings, work: Callable[[str, Path, Console], Exit]) -> Exit:
    """Calls `work` with a run id, the log and the console, while no other run is at work in the workdir."""
    from filelock import FileLock, Timeout

    workdir = Path(config.workdir)
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir / ".run.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise fail(f"{workdir}: another run is at work there; wait for it or take another --workdir") from None
    except OSError as error:
        raise fail(f"{workdir}: cannot be the workdir: {told(error)}; take another --workdir") from None
    run_id = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    log = workdir / "logs" / f"{run_id}.log"
    with lock, _quiet(log) as console:
        return work(run_id, log, console)


def _run(config: Settings, run_id: str, log: Path, console: Console) -> Exit:
    text = f"catbreeds run {run_id} in {config.workdir}; log: {log}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    runs = _components(config, run_id, log, console)
    return runs if isinstance(runs, Exit) else _finish(config, run_id, runs, console)


def _update_schema(config: Settings, folder: Path, run_id: str, log: Path, console: Console) -> Exit:
    runs = _components(config, run_id, log, console, only_ingestion=True)
    if isinstance(runs, Exit):
        return runs
    from components.errors import DataError
    from pipeline import report
    from pipeline.schema_update import update_schema
    from pipeline.target import photos_schema

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


def _components(
    config: Settings, run_id: str, log: Path, console: Console, only_ingestion: bool = False
) -> dict[str, Any] | Exit:
    """Runs the components; everything that is not for people goes to logs."""
    import logging

    from pipeline.console import RunView

    logs = log.with_suffix("")  # a file for each component
    with RunView(console, logs) as view:
        view.starting("starting TensorFlow and TFX")
        gc.disable()  # what is imported is never garbage, and looking for some takes a quarter of the time
        from absl import logging as absl_logging

        absl_logging.set_verbosity(absl_logging.INFO)
        logging.captureWarnings(True)
        from components.errors import DataError, WeightsError
        from pipeline import local_runner
        from pipeline.graph import create_ingestion, create_pipeline
        from pipeline.target import this_machine

        gc.freeze()
        gc.enable()
        try:
            proxies.apply_to_libraries()  # Keras downloads weights, Beam may ask a runner
            connection = local_runner.metadata_config(config.workdir)
            create = create_ingestion if only_ingestion else create_pipeline
            graph = create(config, this_machine(config, run_id), connection)
            runs = local_runner.run(graph, run_id, view, logs, config.workers)
            _write_ingest(config, runs)
            return runs
        except (DataError, WeightsError, RegistryError, SettingsError) as error:
            console.print(f"Cannot start: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return Exit.WRONG_INPUT
        except local_runner.ComponentError as error:
            _write_ingest(config, error.results)
            console.print("Fix the cause and rerun; completed components are reused.")
            wrong_input = all(isinstance(cause, DataError | WeightsError) for cause in error.causes.values())
            return Exit.WRONG_INPUT if wrong_input else Exit.FAILED
        except KeyboardInterrupt:
            console.print("Stopped. Rerun to continue after the last completed component.")
            return Exit.FAILED


def _write_ingest(config: Settings, runs: dict[str, Any]) -> None:
    """Writes what was found in the photos for people, also where the run stops because of it."""
    from pipeline import report

    if "ImageExampleGen" in runs:
        report.write_ingest(Path(config.workdir) / "report", report.read_ingest(runs["ImageExampleGen"]))


def _finish(config: Settings, run_id: str, runs: dict[str, Any], console: Console) -> Exit:
    from components.documents import read_json
    from components.rollout import ROLLOUT_FILE
    from pipeline import report

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
