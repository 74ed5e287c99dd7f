"""The command `drift`."""

import contextlib
import datetime
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from components.errors import DamagedFileError
from pipeline.cli.common import (
    CapturesOption,
    ExitCode,
    JsonOption,
    ProfileOption,
    SetOption,
    WorkdirOption,
    fail,
    read_settings,
    require_captures,
    require_local_path,
)
from pipeline.console import console_on, noise_to
from pipeline.settings import Settings
from serving.names import counted
from serving.registry import Registry, RegistryError

if TYPE_CHECKING:  # slow to import; `--help` works without them
    from serving.captures import Capture

app = typer.Typer()

# More photos would only detect smaller differences, and computing their embeddings takes time.
_MAX_PHOTOS = 1000
# The version that answered most of the newest captures is in service: the stable one, also during a canary.
_NEWEST = 100
_SHOWN_PHOTOS = 12


@app.command()
def drift(
    captures: CapturesOption = None,
    days: Annotated[int, typer.Option(min=1, help="Compare the captures of this many days.")] = 7,
    version: Annotated[
        int | None,
        typer.Option(help="Version that answered the photos.", show_default="the one that answered the newest"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            callback=require_local_path, help="HTML page to write.", show_default="report/drift.html in the workdir"
        ),
    ] = None,
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the photos that a version answers with its test photos: captured photos of the random share.

    Writes a page, and the result to the folder of the captures, from where the gateway exports it as metrics.

    Exit code: 0 no drift, or too few photos, 3 drift, 2 invalid usage or data.
    """
    config, captures = read_settings(profile, settings, workdir=workdir), require_captures(captures)
    now = datetime.datetime.now(datetime.UTC)
    found = _random_share(captures, now - datetime.timedelta(days=days))
    if version is None:
        version = _version_in_service(found)
        page = page if version else None
    found = [capture for capture in found if capture.answer.model.version == version]
    result = {
        "model": config.model_name,
        "version": version,
        "time": now.isoformat(timespec="seconds"),
        "days": days,
        "photos": len(found),
        "drift": None,
        "checks": [],
    }
    if version is not None:
        page = page or Path(config.workdir) / "report" / "drift.html"
        result |= _compare(config, version, found, page, result, not as_json)
        _write_result(captures, result, now)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print_result(console_on(sys.stdout), result, page)
    if result["drift"]:
        raise typer.Exit(ExitCode.REJECTED)


def _compare(
    config: Settings, version: int, captures: "Sequence[Capture]", page: Path, result: dict[str, Any], verbose: bool
) -> dict[str, Any]:
    """Compare captured photos with the test photos of the version, and write the page.

    Args:
        config: Settings with workdir and registry.
        version: Version that answered the photos.
        captures: Its captures.
        page: Path of the page.
        result: Document of the command before the comparison.
        verbose: Whether to show progress on a terminal.

    Returns:
        Keys to add to the document.
    """
    from pipeline.results.reference_photos import read_reference

    registry = Registry(config.registry)
    try:
        reference = read_reference(registry, version)
    except (RegistryError, DamagedFileError) as error:
        raise fail(error) from None
    with noise_to(Path(config.workdir) / "logs" / "drift.log") as console:
        from components.reporting.drift_page import drift_page
        from pipeline.results import traffic_drift
        from pipeline.results.captured_features import captured_features

        rows, checks = [], []
        if len(captures) >= traffic_drift.MIN_PHOTOS:
            drawn = random.Random(0).sample(captures, min(len(captures), _MAX_PHOTOS))
            with Progress(console=console, transient=True, disable=not (verbose and console.is_terminal)) as progress:
                advance = _advance(progress, "photos", len(drawn))
                rows = captured_features(registry.path(version), _photo_contents(drawn), reference.max_side, advance)
                advance = _advance(progress, "resamples", traffic_drift.RESAMPLES)
                checks = traffic_drift.compare(reference.rows, [row for _, row in rows], advance)
        result = result | {
            "photos": len(rows) if checks else len(captures),
            "min_photos": traffic_drift.MIN_PHOTOS,
            "test_photos": len(reference.rows),
            "resamples": traffic_drift.RESAMPLES,
            "false_alarms": traffic_drift.FALSE_ALARMS,
            "drift": any(check.is_drift for check in checks) if checks else None,
            "checks": [check.document() for check in checks],
        }
        farthest = sorted(rows, key=lambda row: -row[1]["unfamiliarity"])[:_SHOWN_PHOTOS]
        examples = [
            (capture.photo, f"{row['predicted']} {row['confidence']:.0%}; capture {capture.id}")
            for capture, row in farthest
        ]
        page.parent.mkdir(parents=True, exist_ok=True)
        text = drift_page(result, _summary(result), reference.rows, [row for _, row in rows], examples)
        page.write_text(text, encoding="utf-8")
    return result


def _write_result(folder: Path, result: dict[str, Any], now: datetime.datetime) -> None:
    """Write the result for the gateway."""
    from serving.drift_result import DriftResult, write_drift_result

    ratios = {check["feature"]: check["distance"] / check["threshold"] for check in result["checks"]}
    write_drift_result(folder, DriftResult(result["version"], now.timestamp(), result["photos"], ratios))


def _random_share(folder: Path, since: datetime.datetime) -> "list[Capture]":
    """Return the captures of the random share since a time, oldest first."""
    from serving.capture_reasons import RANDOM_SHARE
    from serving.captures import CaptureStore

    rows = [capture for capture in CaptureStore(folder).read_all() if capture.reason == RANDOM_SHARE]
    rows = [capture for capture in rows if datetime.datetime.fromisoformat(capture.time) >= since]
    return sorted(rows, key=lambda capture: (capture.time, capture.id))


def _version_in_service(captures: "Sequence[Capture]") -> int | None:
    newest = Counter(capture.answer.model.version for capture in captures[-_NEWEST:])
    return newest.most_common(1)[0][0] if newest else None


def _photo_contents(captures: "Sequence[Capture]") -> "Iterator[tuple[Capture, bytes]]":
    """Yield the captures with their photos, except those that are deleted meanwhile."""
    for capture in captures:
        with contextlib.suppress(FileNotFoundError):
            yield capture, capture.photo.read_bytes()


def _advance(progress: Progress, unit: str, total: int) -> Callable[[int], None]:
    """Add a progress bar; return the function that sets the number of completed units."""
    task = progress.add_task(unit, total=total)
    return lambda done: progress.update(task, completed=done)


def _summary(result: dict[str, Any]) -> str:
    days = counted(result["days"], "day")
    photos = f"{counted(result['photos'], 'captured photo')} of the random share in the last {days}"
    if result["version"] is None:
        return f"Nothing to compare: {photos}."
    if result["drift"] is None:
        return (
            f"Version {result['version']}: not compared: {photos}; at least {result['min_photos']} are needed, because "
            "with fewer even a large difference can be chance."
        )
    drifted = [check["title"] for check in result["checks"] if check["drift"]]
    verdict = f"drift of {', '.join(drifted)}" if drifted else "no drift"
    return (
        f"Version {result['version']}: {verdict}. Compared: {photos}, "
        f"with {counted(result['test_photos'], 'test photo')}. Without drift, {result['false_alarms']:.0%} of such "
        "comparisons report some."
    )


def _print_result(console: Console, result: dict[str, Any], page: Path | None) -> None:
    table = Table.grid(padding=(0, 2))
    for check in result["checks"]:
        style = "bold red" if check["drift"] else ""
        table.add_row(Text("drift" if check["drift"] else "ok", style=style), Text(check["sentence"], style=style))
    console.print(table)
    console.print(_summary(result), markup=False, highlight=False, soft_wrap=True)
    if page:
        console.print(f"Page: {page}", markup=False, highlight=False, soft_wrap=True)
