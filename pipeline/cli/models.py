"""The commands `models`, `lineage` and `gate`, which describe pushed models and the gate's verdicts."""

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from components.errors import DamagedFileError, HistoryError
from pipeline.cli.common import (
    ExitCode,
    JsonOption,
    ProfileOption,
    SetOption,
    VersionArgument,
    WorkdirOption,
    fail,
    read_settings,
)
from pipeline.console import console_on
from pipeline.settings import GateSettings, SettingsError, check_gate
from serving.registry import Registry, RegistryError

app = typer.Typer()


@contextlib.contextmanager
def _exit_on_error() -> Iterator[None]:
    """End the command with a message if a file is damaged or missing, or an argument is invalid."""
    try:
        yield
    except (SettingsError, RegistryError, HistoryError, DamagedFileError) as error:
        raise fail(error) from None
    except FileNotFoundError as error:
        raise fail(f"{error.filename}: this artifact of the run no longer exists") from None
    except KeyError as error:
        raise fail(
            f"an artifact of the run has no {error}: it is damaged, or an older version of catbreeds wrote it"
        ) from None


@app.command()
def models(
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the pushed versions with their labels, their accuracy and the reasons why they passed the gate."""
    registry = Registry(read_settings(profile, settings, workdir=workdir).registry)
    with _exit_on_error():
        # A label may point to a version that no longer exists; it is listed anyway.
        versions = sorted({*registry.versions(), *registry.labels().values()})
        rows = [_summary(registry, version) for version in versions]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        console = console_on(sys.stdout)
        for row in rows:
            _print_version(console, row)
    else:
        print(f"{registry.base}: no model has been pushed; `catbreeds run` trains and pushes one")


@app.command()
def lineage(
    version: VersionArgument,
    photos: Annotated[
        bool, typer.Option("--photos", help="List only the photos that the version was trained on.")
    ] = False,
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trace a pushed version back to its photos, weights, schema, hyperparameters and code."""
    from pipeline.results.lineage import Lineage
    from pipeline.results.run_history import RunHistory

    config = read_settings(profile, settings, workdir=workdir)
    with _exit_on_error():
        lineage = Lineage(RunHistory(config.workdir), Registry(config.registry), version)
        if photos:
            rows = lineage.photos()
            print(json.dumps(rows, indent=1) if as_json else "\n".join(row["path"] for row in rows))
        elif as_json:
            print(json.dumps(lineage.document(), indent=1))
        else:
            console_on(sys.stdout).print(lineage.tree())


@app.command()
def gate(
    run: Annotated[str | None, typer.Option(help="ID of the run.", show_default="the last run")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Gate policy to apply: no_harm, not_worse, better or significantly_better."),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one gate setting, such as gate.margin=0.05; repeat the option for more.",
        ),
    ] = None,
    power: Annotated[
        bool,
        typer.Option("--power", help="Also print how often each policy rejects an equal model and passes a worse one."),
    ] = False,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Re-evaluate the gate for a past run, optionally with other rules. Trains and pushes nothing.

    Exit code: 0 the model passes or nothing is new, 3 the model is rejected.
    """
    from pipeline.results.gate_replay import replay

    config = read_settings("standard", None, workdir=workdir)
    with _exit_on_error():
        changes = check_gate([*(rules or []), *([f"gate.policy={policy}"] if policy else [])])
        decision = replay(config.workdir, run, changes)
    if as_json:
        print(json.dumps(decision, indent=1))
    else:
        _print_replay(decision, changes)
        if power:
            _print_power(decision)
    raise typer.Exit(ExitCode.REJECTED if decision["outcome"] == "refused" else ExitCode.SUCCESS)


def _print_replay(decision: dict, changes: dict) -> None:
    rules = ", ".join(f"{name}={decision['rules'][name]}" for name in GateSettings.model_fields)
    verdicts = {"blessed": "passed", "refused": "rejected", "nothing_new": "nothing new"}
    print(f"Run {decision['run']}, {'with changed rules' if changes else 'with its own rules'}: {rules}")
    print(f"Verdict for {decision['candidate']['backbone']}: {verdicts[decision['outcome']]}")
    for reason in decision["reasons"]:
        print(f"  - {reason}")


def _print_power(decision: dict) -> None:
    power = decision["power"]
    if power is None:
        print("Power: unknown, because there are no test photos")
        return
    print(f"Power of the comparison with the champion: {power['summary']}")
    headers = ("rejects an equal model", f"passes one {100 * power['loss']:g} points worse", "photos for 80%/10%")
    print(f"  {'policy':20}  {'  '.join(headers)}")
    for row in power["policies"]:
        needed = f"{row['photos_needed']:,}" if row["photos_needed"] else f"over {power['max_photos']:,}"
        numbers = (f"{row['rejects_equal']:.1%}", f"{row['passes_worse']:.1%}", needed)
        cells = (f"{number:>{len(header)}}" for number, header in zip(numbers, headers, strict=True))
        print(f"  {row['policy']:20}  {'  '.join(cells)}")


def _summary(registry: Registry, version: int) -> dict:
    labels = [label for label, labeled in registry.labels().items() if labeled == version]
    summary = {"version": version, "labels": labels, "stopped": registry.stop_reason(version)}
    try:
        return summary | _training_and_gate_facts(registry.record(version), registry.admission(version))
    except RegistryError as error:
        return summary | {"unreadable": str(error)}
    except (KeyError, TypeError, ValueError) as error:
        return summary | {"unreadable": f"{registry.path(version)}: damaged: {error!r}"}


def _training_and_gate_facts(record: dict, admission: dict) -> dict:
    candidate = admission["gate"]["candidate"]
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(admission["pushed_at"])
    return {
        "backbone": record["backbone"]["architecture"],
        "weights": record["backbone"]["weights"],
        "test_accuracy": candidate["test_accuracy"],
        "test_accuracy_ci95": candidate["test_accuracy_ci95"],
        "test_photos": candidate["test_photos"],
        "data_digest": record["data_digest"],
        "pushed_at": admission["pushed_at"],
        "age_minutes": int(age.total_seconds() // 60),
        "run": admission["run_id"],
        "reasons": admission["gate"]["reasons"],
    }


def _print_version(console: Console, row: dict) -> None:
    """Print the facts about a version and the gate's reasons, in short lines that fit a narrow terminal."""
    title = Text(f"version {row['version']}", style="bold")
    console.print(title.append("".join(f" {label}" for label in row["labels"]), style="green"))
    if row["stopped"]:
        console.print(Text(f"  was canary: {row['stopped']}", style="yellow"), soft_wrap=True)
    if "unreadable" in row:
        console.print(Text(f"  {row['unreadable']}", style="red"), soft_wrap=True)
        return
    low, high = row["test_accuracy_ci95"]
    console.print(
        f"  {row['backbone']}, accuracy {row['test_accuracy']:.3f} ({low:.3f} to {high:.3f}) on {row['test_photos']} "
        f"test photos, data {row['data_digest'][:8]}, pushed {_format_age(row['age_minutes'])} ago",
        highlight=False,
    )
    for reason in row["reasons"]:
        console.print(f"  - {reason}", markup=False, highlight=False)


def _format_age(minutes: int) -> str:
    for unit, size in (("days", 24 * 60), ("hours", 60)):
        if minutes >= 2 * size:
            return f"{minutes // size} {unit}"
    return f"{minutes} minutes"
