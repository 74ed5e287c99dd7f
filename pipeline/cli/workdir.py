"""Run components in a workdir for the commands `run` and `schema update`: paths, lock, log, progress, exit codes."""

import datetime
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.cli.common import ExitCode, fail, os_error_message
from pipeline.console import noise_to
from pipeline.huge_pages import restart_with_huge_pages
from pipeline.settings import Settings, SettingsError
from serving import proxies
from serving.names import is_one_line, is_utf_8, printable
from serving.registry import RegistryError

# TensorFlow and Beam treat paths as glob patterns: with these characters they find other files, or none.
_GLOB_CHARACTERS = frozenset("*?[]\\")


def check_paths(config: Settings) -> None:
    """End the command if TensorFlow or TFX cannot use a path, before the slow import of both."""
    paths = {name: getattr(config, name) for name in ("data", "workdir", "weights_dir", "photos_schema")}
    paths |= {f"backbones: {name}: model": file.model for name, file in config.model_files.items()}
    for name, path in paths.items():
        if path and "\0" not in path:
            resolved = path if "://" in path else os.path.realpath(path)
            if not is_utf_8(resolved):
                raise fail(f"{name}: {printable(resolved)}: the path is not UTF-8; rename its folders")
    workdir = os.path.realpath(config.workdir)
    if not is_one_line(workdir) or not _GLOB_CHARACTERS.isdisjoint(workdir):
        raise fail(
            f"workdir: {printable(workdir)}: the absolute path must not contain control characters or any of "
            f"{' '.join(sorted(_GLOB_CHARACTERS))}; choose another --workdir"
        )
    if "://" not in config.data:
        try:
            os.stat(config.data)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise fail(
                f"data: {printable(config.data)}: no such folder or archive; "
                "pass one that has one folder of photos per breed"
            ) from None
        except OSError as error:
            raise fail(f"data: {printable(config.data)}: cannot be opened: {error.strerror}") from None


def run_in_workdir(config: Settings, work: Callable[[str, Path, Console], ExitCode]) -> ExitCode:
    """Call `work` with a run ID, the log file and the console, while holding the lock of the workdir."""
    restart_with_huge_pages()
    from filelock import FileLock, Timeout

    workdir = Path(config.workdir)
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir / ".run.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise fail(f"{workdir}: another run is in progress; wait for it or choose another --workdir") from None
    except OSError as error:
        raise fail(
            f"{workdir}: cannot be used as workdir: {os_error_message(error)}; choose another --workdir"
        ) from None
    run_id = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    log = workdir / "logs" / f"{run_id}.log"
    with lock, noise_to(log) as console:
        return work(run_id, log, console)


def run_components(
    config: Settings, run_id: str, log: Path, console: Console, only_ingestion: bool = False
) -> dict[str, Any] | ExitCode:
    """Run the components. The console shows progress and errors; all other output goes to logs.

    Returns:
        Component ID -> its `NodeRun`, or the exit code if the run fails.
    """
    import logging

    from pipeline.console import RunView

    logs = log.with_suffix("")  # folder with one file per component
    with RunView(console, logs) as view:
        view.starting("starting TensorFlow and TFX")
        gc.disable()  # imports create no garbage; gain: "import TFX" of benchmarks/optimizations.py
        from absl import logging as absl_logging

        absl_logging.set_verbosity(absl_logging.INFO)
        logging.captureWarnings(True)
        from components.errors import DataError, WeightsError
        from pipeline.graph import create_ingestion, create_pipeline
        from pipeline.run_context import local_run_context
        from pipeline.runners import local as local_runner

        gc.freeze()  # gain: "frozen run" of benchmarks/optimizations.py
        gc.enable()
        try:
            proxies.apply_to_libraries()  # Keras downloads weights, and Beam may connect to a runner
            connection = local_runner.metadata_config(config.workdir)
            create = create_ingestion if only_ingestion else create_pipeline
            graph = create(config, local_run_context(config, run_id), connection)
            runs = local_runner.run(graph, run_id, view, logs, config.workers)
            _write_ingest(config, runs)
            return runs
        except (DataError, WeightsError, RegistryError, SettingsError) as error:
            console.print(f"Cannot start: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return ExitCode.INVALID_INPUT
        except local_runner.ComponentError as error:
            _write_ingest(config, error.results)
            console.print("Fix the cause and rerun; completed components are reused.")
            invalid_input = all(isinstance(cause, DataError | WeightsError) for cause in error.causes.values())
            return ExitCode.INVALID_INPUT if invalid_input else ExitCode.FAILURE
        except KeyboardInterrupt:
            console.print("Stopped. Rerun to continue after the last completed component.")
            return ExitCode.FAILURE


def _write_ingest(config: Settings, runs: dict[str, Any]) -> None:
    """Write the ingestion part of the report, even if the run stopped because of the photos."""
    from pipeline.results import report

    if "ImageExampleGen" in runs:
        report.write_ingest(Path(config.workdir) / "report", report.read_ingest(runs["ImageExampleGen"]))
