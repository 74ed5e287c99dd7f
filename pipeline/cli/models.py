"""The commands about pushed models: which there are, which serves, why it was admitted, what it learned from."""

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
    Exit,
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
def _errors_told() -> Iterator[None]:
    """What is damaged, gone or wrongly asked for ends the command with a sentence."""
    try:
        yield
    except (SettingsError, RegistryError, HistoryError, DamagedFileError) as error:
        raise fail(error) from None
    except FileNotFoundError as error:
        raise fail(f"{error.filename}: an artifact of that run is gone") from None
    except KeyError as error:
        raise fail(f"what that run left has no {error}: it is damaged, or an older catbreeds wrote it") from None


@app.command()
def models(
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the pushed versions: which serves, how good each is, why it was admitted."""
    registry = Registry(read_settings(profile, settings, workdir=workdir).registry)
    with _errors_told():
        # Also what a label points to and is gone.
        versions = sorted({*registry.versions(), *registry.labels().values()})
        rows = [_summary(registry, version) for version in versions]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        console = console_on(sys.stdout)
        for row in rows:
            _show(console, row)
    else:
        print(f"{registry.base}: no model was pushed; `catbreeds run` trains and pushes one")


@app.command()
def lineage(
    version: VersionArgument,
    photos: Annotated[bool, typer.Option("--photos", help="List the photos that it learned from.")] = False,
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk from a pushed version back to its photos, weights, schema, hyperparameters and code."""
    from pipeline.results.lineage import Lineage
    from pipeline.results.run_history import RunHistory

    config = read_settings(profile, settings, workdir=workdir)
    with _errors_told():
        found = Lineage(RunHistory(config.workdir), Registry(config.registry), version)
        if photos:
            rows = found.photos()
            print(json.dumps(rows, indent=1) if as_json else "\n".join(row["path"] for row in rows))
        elif as_json:
            print(json.dumps(found.document(), indent=1))
        else:
            console_on(sys.stdout).print(found.tree())


@app.command()
def gate(
    run: Annotated[str | None, typer.Option(help="Id of the run.", show_default="the last one")] = None,
    policy: Annotated[str | None, typer.Option(help="not_worse, better or significantly_better.")] = None,
    rules: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another rule: gate.margin=0.05.")
    ] = None,
    workdir: WorkdirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the gate's decision of a run again by other rules; nothing is trained, nothing pushed.

    Exit code: 0 it would admit, or nothing is new; 3 it would refuse.
    """
    from pipeline.results.gate_replay import replay

    config = read_settings("standard", None, workdir=workdir)
    with _errors_told():
        changes = check_gate([*(rules or []), *([f"gate.policy={policy}"] if policy else [])])
        decision = replay(config.workdir, run, changes)
    if as_json:
        print(json.dumps(decision, indent=1))
    else:
        _show_replay(decision, changes)
    raise typer.Exit(Exit.REFUSED if decision["outcome"] == "refused" else Exit.DONE)


def _show_replay(decision: dict, changes: dict) -> None:
    rules = ", ".join(f"{name}={decision['rules'][name]}" for name in GateSettings.model_fields)
    words = {"blessed": "would admit", "refused": "would refuse", "nothing_new": "would find nothing new in"}
    print(f"Run {decision['run']}, {'with other rules' if changes else 'with its own rules'}: {rules}")
    print(f"The gate {words[decision['outcome']]} {decision['candidate']['backbone']}:")
    for reason in decision["reasons"]:
        print(f"  - {reason}")


def _summary(registry: Registry, version: int) -> dict:
    labels = [label for label, labelled in registry.labels().items() if labelled == version]
    summary = {"version": version, "labels": labels, "stopped": registry.stop_reason(version)}
    try:
        return summary | _facts(registry.record(version), registry.admission(version))
    except RegistryError as error:
        return summary | {"unreadable": str(error)}
    except (KeyError, TypeError, ValueError) as error:
        return summary | {"unreadable": f"{registry.path(version)}: damaged: {error!r}"}


def _facts(record: dict, admission: dict) -> dict:
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


def _show(console: Console, row: dict) -> None:
    """A line of facts for a version, and below it why it was admitted: readable in a narrow terminal, too."""
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
        f"test photos, data {row['data_digest'][:8]}, pushed {_age(row['age_minutes'])} ago",
        highlight=False,
    )
    for reason in row["reasons"]:
        console.print(f"  - {reason}", markup=False, highlight=False)


def _age(minutes: int) -> str:
    for unit, size in (("days", 24 * 60), ("hours", 60)):
        if minutes >= 2 * size:
            return f"{minutes // size} {unit}"
    return f"{minutes} minutes"
