"""The command `doctor`."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli.common import ExitCode, JsonOption, ProfileOption, SetOption, WorkdirOption, read_settings
from pipeline.console import console_on

if TYPE_CHECKING:
    from pipeline.environment_checks import Finding

app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "optional": "dim"}


@app.command()
def doctor(
    workdir: WorkdirOption = None,
    profile: ProfileOption = "standard",
    settings: SetOption = None,
    kubeflow_host: Annotated[
        str | None, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of Kubeflow Pipelines.")
    ] = None,
    imports: Annotated[
        bool, typer.Option("--imports", help="Also import TensorFlow and TFX, which takes up to a minute.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether this machine can run the pipeline, and suggest a fix for each problem.

    Exit code: 0 the pipeline can run on this machine, 2 it cannot.
    """
    config = read_settings(profile, settings, check_workdir=False, workdir=workdir)  # the disk check does
    from pipeline.environment_checks import check_environment

    findings = check_environment(config, kubeflow_host, imports)
    can_run = all(finding.state != "problem" for finding in findings)
    if as_json:
        print(json.dumps({"can_run": can_run, "findings": [dataclasses.asdict(f) for f in findings]}, indent=1))
    else:
        _print_findings(findings, can_run)
    raise typer.Exit(ExitCode.SUCCESS if can_run else ExitCode.INVALID_INPUT)


def _print_findings(findings: "list[Finding]", can_run: bool) -> None:
    console = console_on(sys.stdout)
    table = Table.grid(padding=(0, 2))
    for column in ("state", "name"):
        table.add_column(column, no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n-> {finding.advice}")
        table.add_row(Text(finding.state, style=_STYLES[finding.state]), finding.name, text)
    console.print(table)
    console.print(
        "The pipeline can run on this machine."
        if can_run
        else "The pipeline cannot run on this machine; fix every problem first.",
        style="bold",
    )
