"""The commands `compile`, `submit` and `schedule`, which run the pipeline on Kubeflow Pipelines."""

import contextlib
import dataclasses
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import (
    ExitCode,
    SetOption,
    command_with_renamed_options,
    expand_option_groups,
    fail,
    os_error_message,
    read_settings,
    require_local_path,
)
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
    from pipeline.runners.kubeflow.client import Access, KubeflowClient, KubeflowError

DEFAULT_SPEC = Path("kfp_specs/standard.yaml")
SpecArgument = Annotated[Path, typer.Argument(help="Compiled pipeline, as written by `catbreeds compile`.")]

# Task that is skipped when the gate rejects the model, and omitted when nothing is new.
# Pipelines compiled by earlier versions of this project use the second name.
_GATE_PASSED_TASKS = ("GatePassed", "Admitted")
_NOT_STARTED = (None, "PENDING", "OMITTED", "RUNTIME_STATE_UNSPECIFIED")
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_MAX_FAILED_POLLS = 60
_UNCHANGED_POLLS_BEFORE_WORKFLOW = 6  # the Workflow can have megabytes, so it is read only when the run seems to hang
_MAX_OUTCOME_READS = 5
_PERMANENT_ERRORS = (401, 403, 404)  # a retry would not help

app = typer.Typer()


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of `submit` and `schedule` that describe the run."""

    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="Set one pipeline parameter; repeat the option for more."),
    ] = None
    experiment: Annotated[
        str | None,
        typer.Option(
            help="Experiment that groups the runs in the UI; created if missing.",
            show_default="the name of the pipeline",
        ),
    ] = None
    pipeline_root: Annotated[
        str | None,
        typer.Option(
            help="Storage for the artifacts: an s3://, minio:// or gs:// path.",
            show_default="the default of the server",
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Options of `submit` and `schedule` that describe the server; they have the names of the fields of `Access`."""

    host: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_ENDPOINT",
            help="Address of the Kubeflow Pipelines UI or API.",
            show_default="the cluster of the kubectl context",
        ),
    ] = None
    token: Annotated[str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token.")] = None
    cookie: Annotated[
        str | None,
        typer.Option(envvar="KF_PIPELINES_COOKIE", help="Session cookie NAME=VALUE from a browser that is logged in."),
    ] = None
    ca_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="KF_PIPELINES_CA_CERT",
            exists=True,
            dir_okay=False,
            help="PEM file of CA certificates to trust.",
        ),
    ] = None
    context: Annotated[
        str | None,
        typer.Option(help="kubectl context to use if --host is not given.", show_default="the current context"),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option(envvar="KF_PIPELINES_NAMESPACE", help="Your profile namespace; only for multi-user servers."),
    ] = None
    ui: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_UI_ENDPOINT",
            help="Address of the UI for printed links.",
            show_default="the host",
        ),
    ] = None

    def access(self) -> "Access":
        """Return the options as an `Access`; its module is slow to import."""
        from pipeline.runners.kubeflow.client import Access

        return Access(**dataclasses.asdict(self))


@app.command("compile")
def compile_(
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Profile to compile; repeat the option for more.", show_default="standard and smoke"),
    ] = None,
    output: Annotated[
        Path, typer.Option(callback=require_local_path, help="Folder to write the compiled pipelines to.")
    ] = DEFAULT_SPEC.parent,
    settings: SetOption = None,
) -> None:
    """Compile the pipeline for Kubeflow Pipelines and Vertex AI, into one <profile>.yaml per profile.

    Each file holds the pipeline spec and the platform spec.
    """
    configs = {Path(name).stem: read_settings(name, settings) for name in profile or ("standard", "smoke")}
    with tempfile.TemporaryDirectory() as noise, noise_to(Path(noise) / "compile.log"):
        from pipeline.runners.kubeflow.compiler import write_pipeline

        try:
            for name, config in configs.items():
                write_pipeline(config, output / f"{name}.yaml")
        except SettingsError as error:
            raise fail(error) from None
        except OSError as error:
            raise fail(f"{os_error_message(error)}; --output must be a writable folder") from None
    for name in configs:
        print(output / f"{name}.yaml")


@app.command(cls=command_with_renamed_options({"--poll": "--poll-interval"}))
@expand_option_groups
def submit(
    spec: SpecArgument = DEFAULT_SPEC,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the run ends, and show progress.")] = True,
    poll_interval: Annotated[float, typer.Option(min=0.01, help="Seconds between two status requests.")] = 5,
    *,
    run_options: RunOptions,
    server_options: ServerOptions,
) -> None:
    """Run a compiled pipeline on Kubeflow Pipelines and follow it until it ends.

    Exit code: 0 pushed or nothing new, 1 failure, 2 invalid usage or no connection, 3 rejected by the gate.
    """
    from pipeline.runners.kubeflow.client import KubeflowClient, KubeflowError

    try:
        compiled = read_spec(spec)
        parameters = run_parameters(compiled, run_options.param or ())
        check_pipeline_root(run_options.pipeline_root)
        kubeflow = KubeflowClient(server_options.access())
        version = _upload(kubeflow, compiled)
        experiment_id = kubeflow.find_experiment(run_options.experiment or compiled.name, create=True)
        name = f"{compiled.name} {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S}"
        run_id = kubeflow.start_run(name, experiment_id, version, parameters, run_options.pipeline_root)
    except (SpecError, KubeflowError) as error:
        raise fail(error) from None
    link = kubeflow.link("runs", run_id)
    print(f"Run {run_id}: {link}", flush=True)
    if not wait:
        return
    try:
        raise typer.Exit(_follow(kubeflow, run_id, compiled.tasks, poll_interval))
    except KeyboardInterrupt:
        raise fail(f"stopped following; the run continues: {link}", ExitCode.FAILURE) from None
    except KubeflowError as error:
        raise fail(f"{error}\nThe run continues if the server is up: {link}") from None


@app.command()
@expand_option_groups
def schedule(
    spec: SpecArgument = DEFAULT_SPEC,
    cron: Annotated[
        str | None,
        typer.Option(
            metavar="CRON",
            help='Create or replace the schedule: five cron fields, for example "0 3 * * 1" for Mondays at 03:00.',
        ),
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Pause the schedule; with --cron, create it paused.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume a paused schedule; if it missed runs, one starts at once.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the schedule.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the schedules of the experiment.")] = False,
    *,
    run_options: RunOptions,
    server_options: ServerOptions,
) -> None:
    """Run a compiled pipeline on a schedule, one run at a time.

    A pipeline has at most one schedule per experiment. Times are in UTC unless the server is configured otherwise.
    Runs are missed while the schedule is paused, while an earlier run is in progress and while the server is down;
    afterwards only the latest missed run is started.
    """
    from pipeline.runners.kubeflow.client import SCHEDULED_TIME, KubeflowClient, KubeflowError
    from pipeline.runners.kubeflow.cron import CronError, to_kubeflow

    if [resume, delete, list_, cron is not None or pause].count(True) != 1:
        raise fail('pass one of --cron "MINUTE HOUR DAY MONTH WEEKDAY", --pause, --resume, --delete and --list')
    if cron is None and (run_options.param or run_options.pipeline_root):
        raise fail("--param and --pipeline-root require --cron, which replaces the schedule")
    try:
        compiled = read_spec(spec)
        experiment = run_options.experiment or compiled.name
        if cron is None:
            kubeflow = KubeflowClient(server_options.access())
            experiment_id = kubeflow.find_experiment(experiment, create=False)
            if list_:
                _print_schedules(kubeflow.list_schedules(experiment_id), experiment)
            elif pause:
                _change_schedules(kubeflow, experiment_id, compiled.name, kubeflow.pause_schedule, "paused")
            elif resume:
                _change_schedules(
                    kubeflow,
                    experiment_id,
                    compiled.name,
                    kubeflow.resume_schedule,
                    "active again",
                    require_single=True,
                )
                print("If the schedule missed runs while it was paused, the latest one starts now.")
            else:
                _change_schedules(kubeflow, experiment_id, compiled.name, kubeflow.delete_schedule, "deleted")
            return
        cron_with_seconds = to_kubeflow(cron)
        parameters = run_parameters(compiled, run_options.param or (), SCHEDULED_TIME)
        check_pipeline_root(run_options.pipeline_root)
        kubeflow = KubeflowClient(server_options.access())
        version = _upload(kubeflow, compiled)
        experiment_id = kubeflow.find_experiment(experiment, create=True)
        schedule_id = kubeflow.replace_schedule(
            compiled.name,
            experiment_id,
            version,
            parameters,
            run_options.pipeline_root,
            cron_with_seconds,
            enabled=not pause,
        )
    except (SpecError, CronError, KubeflowError) as error:
        raise fail(error) from None
    print(f"Schedule {schedule_id}, {'paused' if pause else 'active'}: {kubeflow.link('recurringrun', schedule_id)}")
    print(f"Next times, in UTC unless the server is configured otherwise: {_next_times(cron_with_seconds)}")


def _upload(kubeflow: "KubeflowClient", spec: CompiledSpec) -> tuple[str, str]:
    *version, is_new = kubeflow.ensure_version(spec)
    print(f"Pipeline {spec.name}, version {spec.version}{'' if is_new else ' (already uploaded)'}")
    return tuple(version)


def _follow(kubeflow: "KubeflowClient", run_id: str, tasks: Collection[str], poll_interval: float) -> ExitCode:
    """Print each change of a task's state until the run has ended; return the exit code."""
    from pipeline.runners.kubeflow.client import KubeflowError

    states: dict[str, str] = {}
    failed_polls = unchanged_polls = 0
    while True:
        try:
            run, failed_polls = kubeflow.get_run(run_id), 0
        except KubeflowError as error:
            failed_polls += 1
            if failed_polls > _MAX_FAILED_POLLS or error.status in _PERMANENT_ERRORS:
                raise
            if failed_polls == 1:
                print(f"catbreeds: {error}; trying again", file=sys.stderr)
        else:
            details = (run.run_details and run.run_details.task_details) or ()
            changed = _print_changes(details, "display_name", "start_time", "end_time", tasks, states)
            if run.state in _ENDED:
                return _print_outcome(kubeflow, run, tasks, states, poll_interval)
            unchanged_polls = 0 if changed else unchanged_polls + 1
            if unchanged_polls == _UNCHANGED_POLLS_BEFORE_WORKFLOW:
                unchanged_polls = 0
                with contextlib.suppress(KubeflowError):  # if it persists, `_print_outcome` reports it
                    _print_workflow_changes(kubeflow.get_workflow(run_id), tasks, states)
        time.sleep(poll_interval)


def _print_workflow_changes(workflow: "Workflow", tasks: Collection[str], states: dict[str, str]) -> None:
    _print_changes(workflow.tasks().values(), "name", "start", "end", tasks, states)


def _print_changes(
    reported: Iterable[Any], name: str, start: str, end: str, tasks: Collection[str], states: dict[str, str]
) -> bool:
    """Print a line for each task whose state changed.

    Args:
        reported: Nodes that the server reports: tasks, and drivers, executors and retries under other names.
        name, start, end: Names of the attributes of a node that hold its name, start time and end time.
        tasks: Names of the tasks of the pipeline.
        states: Task -> last printed state; updated by this function.

    Returns:
        Whether a line was printed.
    """
    rows = [(getattr(node, name), node.state, getattr(node, start), getattr(node, end)) for node in reported]
    # An end state is final: another source, read later, may still report an older one.
    changed = [
        row
        for row in rows
        if row[0] in tasks and row[1] not in (*_NOT_STARTED, states.get(row[0])) and states.get(row[0]) not in _ENDED
    ]
    # The server reports the year 1 as the end of a running task.
    for task, state, started, ended in sorted(
        changed, key=lambda row: (str(row[3] if row[1] in _ENDED else row[2]), row[0])
    ):
        states[task] = state
        done = sum(state in _ENDED for state in states.values())
        line = f"[{done:>2}/{len(tasks)}] {task:<28} {state.lower()}"
        if state == "SUCCEEDED" and started and ended:
            line += f"{(ended - started).total_seconds():>8.0f} s"
        print(line, flush=True)
    return bool(changed)


def _print_outcome(
    kubeflow: "KubeflowClient", run: "V2beta1Run", tasks: Collection[str], states: dict[str, str], poll_interval: float
) -> ExitCode:
    """Print the outcome of a run; return the exit code.

    The gate's verdict is read from the Workflow, because the tasks in `run` may be outdated.
    """
    from pipeline.runners.kubeflow.client import KubeflowError

    workflow, read_error = None, None
    for _ in range(_MAX_OUTCOME_READS):
        try:
            workflow = kubeflow.get_workflow(run.run_id)
            break
        except KubeflowError as error:
            read_error = error
            if error.status in _PERMANENT_ERRORS:
                break
        time.sleep(poll_interval)
    if workflow:
        _print_workflow_changes(workflow, tasks, states)
    if run.state != "SUCCEEDED":
        verb = "failed" if run.state == "FAILED" else f"was {run.state.lower()}"
        print(f"The run {verb}{': ' + run.error.message if run.error and run.error.message else '.'}")
        if run.state == "FAILED":
            _print_failures(kubeflow, run, workflow, read_error)
        return ExitCode.FAILURE
    if passed := next((name for name in _GATE_PASSED_TASKS if name in tasks), None):
        state = workflow.tasks()[passed].state if workflow and passed in workflow.tasks() else states.get(passed)
        if state == "SKIPPED":
            print("Rejected: nothing pushed. The run's gate verdict gives the reasons.")
            return ExitCode.REJECTED
        if state not in ("SUCCEEDED", "OMITTED"):  # omitted: nothing was new
            reason = read_error or f"the server's Workflow has no final state of {passed}"
            message = f"the run succeeded, but it is unknown whether a model was pushed: {reason}"
            raise fail(f"{message}\nCheck the task {passed} in the UI, or run `catbreeds models`.", ExitCode.FAILURE)
    print("The run succeeded.")
    return ExitCode.SUCCESS


def _print_failures(
    kubeflow: "KubeflowClient", run: "V2beta1Run", workflow: "Workflow | None", read_error: "KubeflowError | None"
) -> None:
    """Print each failed task and the command that shows its log, which is the only trace of a failed driver."""
    logs = f"    kubectl logs -n {kubeflow.namespace} -l pipeline/runid={run.run_id} -c main --prefix --tail 50"
    failures = workflow.failures() if workflow else []
    for node in failures:
        subject = f"the driver of {node.task}" if node.is_driver else node.task
        print(f"{subject} failed{': ' + node.message if node.message else ''}")
        print(f"    kubectl logs -n {workflow.namespace} {node.pod} -c main" if node.pod else logs)
    if failures:
        return
    if workflow:
        print(f"No task failed; Argo Workflows ended the run{': ' + workflow.message if workflow.message else ''}")
    else:
        print(f"The cause of the failure cannot be read: {read_error}")
    for task in (run.run_details and run.run_details.task_details) or ():
        if task.state == "FAILED":
            pods = " ".join(child.pod_name for child in task.child_tasks or () if child.pod_name)
            print(f"{task.display_name} failed{': pods ' + pods if pods else ''}")
    print(logs)


def _print_schedules(schedules: "list[V2beta1RecurringRun]", experiment: str) -> None:
    from pipeline.runners.kubeflow.cron import from_kubeflow

    if not schedules:
        print(f"No schedule in experiment {experiment}; create one with `catbreeds schedule --cron`.")
    for recurring_run in schedules:
        cron = recurring_run.trigger.cron_schedule.cron if recurring_run.trigger.cron_schedule else None
        state = "active" if recurring_run.status == "ENABLED" else "paused"
        times = f"{from_kubeflow(cron)!r}, next {_next_times(cron, 1)}" if cron else "not a cron schedule"
        print(f"{recurring_run.display_name}  {state}  {times}  {recurring_run.recurring_run_id}")
        config = recurring_run.runtime_config
        for name, value in sorted(((config and config.parameters) or {}).items()):
            print(f"    {name}={value}")


def _change_schedules(
    kubeflow: "KubeflowClient",
    experiment_id: str,
    name: str,
    change: Callable[[str], None],
    new_state: str,
    require_single: bool = False,
) -> None:
    """Apply `change` to every schedule named `name`; there are several only after an interrupted update."""
    schedules = kubeflow.list_schedules(experiment_id, name)
    if not schedules:
        raise fail(f"no schedule {name!r} in this experiment; create one with --cron, or list all with --list")
    if require_single and len(schedules) > 1:
        raise fail(
            f"{len(schedules)} schedules {name!r} exist, because an update was interrupted; rerun it with --cron"
        )
    for recurring_run in schedules:
        change(recurring_run.recurring_run_id)
        print(f"Schedule {recurring_run.recurring_run_id}, {new_state}")


def _next_times(cron_with_seconds: str, count: int = 3) -> str:
    from croniter import CroniterError

    from pipeline.runners.kubeflow.cron import next_times

    try:
        times = next_times(cron_with_seconds, datetime.datetime.now(datetime.UTC), count)
    except CroniterError:  # a schedule created elsewhere, in a notation of the UI or of robfig/cron
        return "unknown"
    return ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in times)
