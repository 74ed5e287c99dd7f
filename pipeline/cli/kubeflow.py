"""The commands `compile`, `submit` and `schedule`: the pipeline on Kubeflow Pipelines."""

import contextlib
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import Exit, SetOption, fail, on_this_machine, read_settings, told
from pipeline.console import noise_to
from pipeline.runners.kubeflow.compiled_spec import (
    CompiledSpec,
    SpecError,
    check_pipeline_root,
    read_spec,
    run_parameters,
)
from pipeline.settings import SettingsError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1RecurringRun, V2beta1Run

    from pipeline.runners.kubeflow.argo_workflow import Workflow
    from pipeline.runners.kubeflow.client import KubeflowClient, KubeflowError

SpecArgument = Annotated[Path, typer.Argument(help="Compiled pipeline; `catbreeds compile` writes it.")]
ParamOption = Annotated[
    list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="Sets a parameter of the pipeline.")
]
ExperimentOption = Annotated[
    str | None, typer.Option(help="Groups runs in the UI; made if absent. Default: the pipeline's name.")
]
RootOption = Annotated[
    str | None, typer.Option(help="Where artifacts go: s3://, minio:// or gs://. Default: the server's.")
]
HostOption = Annotated[
    str | None,
    typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Of the server or its UI. Default: as in kubectl's file."),
]
TokenOption = Annotated[str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token to sign in with.")]
CookieOption = Annotated[
    str | None, typer.Option(envvar="KF_PIPELINES_COOKIE", help="NAME=VALUE of a browser that is signed in.")
]
CaOption = Annotated[
    Path | None,
    typer.Option(envvar="KF_PIPELINES_CA_CERT", exists=True, dir_okay=False, help="Certificates to trust."),
]
ContextOption = Annotated[str | None, typer.Option(help="Of kubectl's file, where no host is said.")]
NamespaceOption = Annotated[
    str | None, typer.Option(envvar="KF_PIPELINES_NAMESPACE", help="Yours, on a server for many users.")
]
UiOption = Annotated[
    str | None, typer.Option(envvar="KF_PIPELINES_UI_ENDPOINT", help="Address of the UI, for links. Default: the host.")
]
DEFAULT_SPEC = Path("kfp_specs/standard.yaml")
# Task of the pipeline that is skipped when the gate refuses, and omitted when nothing is new.
# The second is the name in pipelines that earlier versions of this project compiled.
_GATE_PASSED = ("GatePassed", "Admitted")
_NOT_STARTED = (None, "PENDING", "OMITTED", "RUNTIME_STATE_UNSPECIFIED")
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_MOST_LOST_LOOKS = 60
_LOOKS_UNTIL_STILL = 6  # without a change; then the Workflow is read, which can be megabytes
_MOST_LOOKS_AT_OUTCOME = 5
_FINAL = (401, 403, 404)  # asking again would not help

app = typer.Typer()


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
    with tempfile.TemporaryDirectory() as noise, noise_to(Path(noise) / "compile.log"):
        from pipeline.runners.kubeflow.compiler import write_pipeline

        try:
            for name, config in configs.items():
                write_pipeline(config, output / f"{name}.yaml")
        except SettingsError as error:
            raise fail(error) from None
        except OSError as error:
            raise fail(f"{told(error)}; --output must be a folder that can be written") from None
    for name in configs:
        print(output / f"{name}.yaml")


@app.command()
def submit(
    spec: SpecArgument = DEFAULT_SPEC,
    param: ParamOption = None,
    experiment: ExperimentOption = None,
    pipeline_root: RootOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    poll: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks at the run.")] = 5,
    host: HostOption = None,
    token: TokenOption = None,
    cookie: CookieOption = None,
    ca_cert: CaOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    ui: UiOption = None,
) -> None:
    """Run a compiled pipeline on Kubeflow Pipelines and follow it to its end.

    Exit code: 0 pushed or nothing new, 3 the gate refused, 2 wrong usage or no connection, 1 failure.
    """
    from pipeline.runners.kubeflow.client import Access, KubeflowClient, KubeflowError

    access = Access(host, token, cookie, ca_cert, context, namespace, ui)
    try:
        compiled = read_spec(spec)
        parameters = run_parameters(compiled, param or ())
        check_pipeline_root(pipeline_root)
        kubeflow = KubeflowClient(access)
        version = _upload(kubeflow, compiled)
        experiment_id = kubeflow.find_experiment(experiment or compiled.name, create=True)
        name = f"{compiled.name} {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S}"
        run_id = kubeflow.start_run(name, experiment_id, version, parameters, pipeline_root)
    except (SpecError, KubeflowError) as error:
        raise fail(error) from None
    link = kubeflow.link("runs", run_id)
    print(f"Run {run_id}: {link}", flush=True)
    if not wait:
        return
    try:
        raise typer.Exit(_follow(kubeflow, run_id, compiled.tasks, poll))
    except KeyboardInterrupt:
        raise fail(f"no longer watching; the run goes on: {link}", Exit.FAILED) from None
    except KubeflowError as error:
        raise fail(f"{error}\nThe run goes on, if the server does: {link}") from None


@app.command()
def schedule(
    spec: SpecArgument = DEFAULT_SPEC,
    cron: Annotated[
        str | None,
        typer.Option(metavar="CRON", help='Run then: "0 3 * * 1" is Mondays at 3. Replaces the schedule there is.'),
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Stop it for now; with --cron: make it, asleep.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after --pause; a missed time starts one run at once.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the schedules of the experiment.")] = False,
    param: ParamOption = None,
    experiment: ExperimentOption = None,
    pipeline_root: RootOption = None,
    host: HostOption = None,
    token: TokenOption = None,
    cookie: CookieOption = None,
    ca_cert: CaOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    ui: UiOption = None,
) -> None:
    """Run a compiled pipeline on a schedule, one run at a time.

    A pipeline has one schedule in an experiment. Times are UTC, unless the server is set otherwise. Of the times that
    it misses, because it is paused, a run still goes on or the server is down, it makes up for the latest only.
    """
    from pipeline.runners.kubeflow.client import SCHEDULED_TIME, Access, KubeflowClient, KubeflowError
    from pipeline.runners.kubeflow.cron import CronError, to_kubeflow

    if [resume, delete, list_, cron is not None or pause].count(True) != 1:
        raise fail('say one of --cron "MINUTE HOUR DAY MONTH WEEKDAY", --pause, --resume, --delete and --list')
    if cron is None and (param or pipeline_root):
        raise fail("--param and --pipeline-root belong to --cron, which makes the schedule anew")
    access = Access(host, token, cookie, ca_cert, context, namespace, ui)
    try:
        compiled = read_spec(spec)
        name = experiment or compiled.name
        if cron is None:
            kubeflow = KubeflowClient(access)
            experiment_id = kubeflow.find_experiment(name, create=False)
            if list_:
                _list(kubeflow.list_schedules(experiment_id), name)
            elif pause:
                _change(kubeflow, experiment_id, compiled.name, kubeflow.pause_schedule, "paused")
            elif resume:
                _change(kubeflow, experiment_id, compiled.name, kubeflow.resume_schedule, "active again", only_one=True)
                print("If it was paused over a time of the schedule, one run starts now, for the latest time.")
            else:
                _change(kubeflow, experiment_id, compiled.name, kubeflow.delete_schedule, "deleted")
            return
        six = to_kubeflow(cron)
        parameters = run_parameters(compiled, param or (), SCHEDULED_TIME)
        check_pipeline_root(pipeline_root)
        kubeflow = KubeflowClient(access)
        version = _upload(kubeflow, compiled)
        experiment_id = kubeflow.find_experiment(name, create=True)
        schedule_id = kubeflow.replace_schedule(
            compiled.name, experiment_id, version, parameters, pipeline_root, six, enabled=not pause
        )
    except (SpecError, CronError, KubeflowError) as error:
        raise fail(error) from None
    print(f"Schedule {schedule_id}, {'paused' if pause else 'active'}: {kubeflow.link('recurringrun', schedule_id)}")
    print(f"Next times, in UTC unless the server is set otherwise: {_next_times(six)}")


def _upload(kubeflow: "KubeflowClient", spec: CompiledSpec) -> tuple[str, str]:
    *version, is_new = kubeflow.ensure_version(spec)
    print(f"Pipeline {spec.name}, version {spec.version}{'' if is_new else ', which was there'}")
    return tuple(version)


def _follow(kubeflow: "KubeflowClient", run_id: str, tasks: Collection[str], poll: float) -> Exit:
    """Prints what changes, until the run has ended."""
    from pipeline.runners.kubeflow.client import KubeflowError

    seen: dict[str, str] = {}
    lost = unchanged = 0
    while True:
        try:
            run, lost = kubeflow.get_run(run_id), 0
        except KubeflowError as error:
            lost += 1
            if lost > _MOST_LOST_LOOKS or error.status in _FINAL:
                raise
            if lost == 1:
                print(f"catbreeds: {error}; trying again", file=sys.stderr)
        else:
            details = (run.run_details and run.run_details.task_details) or ()
            changed = _show_changes(details, "display_name", "start_time", "end_time", tasks, seen)
            if run.state in _ENDED:
                return _end(kubeflow, run, tasks, seen, poll)
            unchanged = 0 if changed else unchanged + 1
            if unchanged == _LOOKS_UNTIL_STILL:
                unchanged = 0
                with contextlib.suppress(KubeflowError):  # the end of the run says so, if it still fails
                    _show_workflow(kubeflow.get_workflow(run_id), tasks, seen)
        time.sleep(poll)


def _show_workflow(workflow: "Workflow", tasks: Collection[str], seen: dict[str, str]) -> None:
    _show_changes(workflow.tasks().values(), "name", "start", "end", tasks, seen)


def _show_changes(
    found: Iterable[Any], name: str, start: str, end: str, tasks: Collection[str], seen: dict[str, str]
) -> bool:
    """A line for each task that is in another state than before; `seen` remembers task -> state.

    Args:
        found: what the server reports of tasks, and of drivers, executors and tries under names that no task has.
        name, start, end: attributes in which it says so.
        tasks: names of the tasks.
        seen: task -> the state that was shown last.

    Returns:
        Whether there was a line.
    """
    rows = [(getattr(one, name), one.state, getattr(one, start), getattr(one, end)) for one in found]
    # A state that ended is final; a later look at another source may be at an older one.
    changed = [
        row
        for row in rows
        if row[0] in tasks and row[1] not in (*_NOT_STARTED, seen.get(row[0])) and seen.get(row[0]) not in _ENDED
    ]
    # The server gives a task that goes on an end in the year 1.
    for task, state, started, ended in sorted(
        changed, key=lambda row: (str(row[3] if row[1] in _ENDED else row[2]), row[0])
    ):
        seen[task] = state
        done = sum(state in _ENDED for state in seen.values())
        line = f"[{done:>2}/{len(tasks)}] {task:<28} {state.lower()}"
        if state == "SUCCEEDED" and started and ended:
            line += f"{(ended - started).total_seconds():>8.0f} s"
        print(line, flush=True)
    return bool(changed)


def _end(
    kubeflow: "KubeflowClient", run: "V2beta1Run", tasks: Collection[str], seen: dict[str, str], poll: float
) -> Exit:
    """Says how a run ended; what the gate decided is read from the Workflow, because the tasks of `run` may be old."""
    from pipeline.runners.kubeflow.client import KubeflowError

    workflow, unread = None, None
    for _ in range(_MOST_LOOKS_AT_OUTCOME):
        try:
            workflow = kubeflow.get_workflow(run.run_id)
            break
        except KubeflowError as error:
            unread = error
            if error.status in _FINAL:
                break
        time.sleep(poll)
    if workflow:
        _show_workflow(workflow, tasks, seen)
    if run.state != "SUCCEEDED":
        print(f"The run {run.state.lower()}{': ' + run.error.message if run.error and run.error.message else '.'}")
        if run.state == "FAILED":
            _show_failures(kubeflow, run, workflow, unread)
        return Exit.FAILED
    if passed := next((name for name in _GATE_PASSED if name in tasks), None):
        state = workflow.tasks()[passed].state if workflow and passed in workflow.tasks() else seen.get(passed)
        if state == "SKIPPED":
            print("The gate refused: nothing was pushed. Its reasons are in the run's verdict.")
            return Exit.REFUSED
        if state not in ("SUCCEEDED", "OMITTED"):  # the latter: nothing was new
            why = unread or f"the server's Workflow does not say how {passed} ended"
            message = f"the run succeeded, but whether a model was pushed cannot be read: {why}"
            raise fail(f"{message}\nSee {passed} in the UI, or `catbreeds models`.", Exit.FAILED)
    print("The run succeeded.")
    return Exit.DONE


def _show_failures(
    kubeflow: "KubeflowClient", run: "V2beta1Run", workflow: "Workflow | None", unread: "KubeflowError | None"
) -> None:
    """What failed, and the command that shows its log; a driver that fails leaves nothing else behind."""
    logs = f"    kubectl logs -n {kubeflow.namespace} -l pipeline/runid={run.run_id} -c main --prefix --tail 50"
    failures = workflow.failures() if workflow else []
    for node in failures:
        what = f"the driver of {node.task}" if node.is_driver else node.task
        print(f"{what} failed{': ' + node.message if node.message else ''}")
        print(f"    kubectl logs -n {workflow.namespace} {node.pod} -c main" if node.pod else logs)
    if failures:
        return
    if workflow:
        print(f"No task failed; Argo Workflows ended the run{': ' + workflow.message if workflow.message else ''}")
    else:
        print(f"Why it failed cannot be read: {unread}")
    for task in (run.run_details and run.run_details.task_details) or ():
        if task.state == "FAILED":
            pods = " ".join(child.pod_name for child in task.child_tasks or () if child.pod_name)
            print(f"{task.display_name} failed{': pods ' + pods if pods else ''}")
    print(logs)


def _list(schedules: "list[V2beta1RecurringRun]", experiment: str) -> None:
    from pipeline.runners.kubeflow.cron import from_kubeflow

    if not schedules:
        print(f"No schedule in experiment {experiment}; `catbreeds schedule --cron` makes one.")
    for one in schedules:
        cron = one.trigger.cron_schedule.cron if one.trigger.cron_schedule else None
        state = "active" if one.status == "ENABLED" else "paused"
        when = f"{from_kubeflow(cron)!r}, next {_next_times(cron, 1)}" if cron else "not by cron"
        print(f"{one.display_name}  {state}  {when}  {one.recurring_run_id}")
        for name, value in sorted(((one.runtime_config and one.runtime_config.parameters) or {}).items()):
            print(f"    {name}={value}")


def _change(
    kubeflow: "KubeflowClient",
    experiment_id: str,
    name: str,
    change: Callable[[str], None],
    done: str,
    only_one: bool = False,
) -> None:
    schedules = kubeflow.list_schedules(experiment_id, name)
    if not schedules:
        raise fail(f"there is no schedule {name!r} in that experiment; --cron makes one, --list shows those there are")
    if only_one and len(schedules) > 1:
        raise fail(f"there are {len(schedules)} schedules {name!r}, an update was interrupted; --cron leaves one")
    for one in schedules:
        change(one.recurring_run_id)
        print(f"Schedule {one.recurring_run_id}, {done}")


def _next_times(six: str, count: int = 3) -> str:
    from croniter import CroniterError

    from pipeline.runners.kubeflow.cron import next_times

    try:
        times = next_times(six, datetime.datetime.now(datetime.UTC), count)
    except CroniterError:  # somebody else's, as the UI or robfig/cron spells it
        return "unknown"
    return ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in times)
