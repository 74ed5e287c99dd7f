"""`catbreeds submit` and `catbreeds schedule` with a server that validates requests against the official models."""

import datetime
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml
from croniter import croniter
from typer.testing import CliRunner, Result

from pipeline.cli import app
from pipeline.settings import ROOT
from tests import fork_server
from tests.pipeline import flaky_server
from tests.pipeline.cli.kubeflow_server import KubeflowServer, serving
from tests.pipeline.flaky_server import cut_after, send_file
from tests.running import CATBREEDS, catbreeds

TASKS = ("DataGate", "Tuner", "ModelGate", "GatePassed")
PARAMETERS = {
    "data": {"parameterType": "STRING", "defaultValue": "/catbreeds/photos"},
    "run_date": {"parameterType": "STRING", "defaultValue": ""},
    "min_accuracy": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 0.5},
    "min_slice": {"parameterType": "NUMBER_INTEGER", "defaultValue": 20.0},
    "dry": {"parameterType": "BOOLEAN", "defaultValue": False},
    "breeds": {"parameterType": "LIST", "defaultValue": []},
}


def compiled(
    path: Path, parameters: dict = PARAMETERS, schema: str = "2.1.0", task_names: tuple[str, ...] = TASKS
) -> Path:
    """Write a compiled pipeline: the pipeline spec, then the platform spec as a second document."""
    container = {"image": "catbreeds-pipeline:0.1.0", "command": ["true"]}
    tasks = {name: {"taskInfo": {"name": name}, "componentRef": {"name": name}} for name in task_names}
    pipeline = {
        "pipelineInfo": {"name": "catbreeds"},
        "schemaVersion": schema,
        "deploymentSpec": {"executors": {name: {"container": container} for name in task_names}},
        "components": {name: {"executorLabel": name} for name in task_names},
        "root": {"dag": {"tasks": tasks}, "inputDefinitions": {"parameters": parameters}},
    }
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {}}}}}
    path.write_text(yaml.safe_dump_all([pipeline, platform]))
    return path


@pytest.fixture
def spec(tmp_path) -> Path:
    return compiled(tmp_path / "standard.yaml")


@pytest.fixture
def server() -> KubeflowServer:
    return KubeflowServer()


@pytest.fixture
def url(server) -> Iterator[str]:
    with serving(server) as url:
        yield url


@pytest.fixture
def call(url) -> Callable[..., Result]:
    """Run a command with that server, in this process because there are many calls."""

    def call(*arguments: object, **variables: str) -> Result:
        done = CliRunner().invoke(app, list(map(str, arguments)), env={"KF_PIPELINES_ENDPOINT": url, **variables})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done

    return call


@pytest.fixture
def call_with_kubeconfig(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run `catbreeds` with a kubectl configuration and without a host."""

    def call(config: dict | str, *arguments: object) -> subprocess.CompletedProcess:
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        command = [str(CATBREEDS), *map(str, arguments)]
        environment = {**os.environ, "KF_PIPELINES_ENDPOINT": "", "KUBECONFIG": str(file)}
        # In a new process, because the Kubernetes client reads KUBECONFIG when it is imported.
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return call


def assert_rejected(done: Result | subprocess.CompletedProcess, *parts: str) -> None:
    code = done.exit_code if isinstance(done, Result) else done.returncode
    assert (code, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def single_value(items: dict[str, dict]) -> dict:
    (item,) = items.values()
    return item


def test_submit_uploads_a_pipeline_runs_it_and_follows_the_run(call, server, url, spec):
    server.script = [
        ("PENDING", {}),
        ("RUNNING", {"DataGate": "RUNNING"}),
        ("RUNNING", {"DataGate": "SUCCEEDED", "Tuner": "RUNNING"}),
        ("SUCCEEDED", dict.fromkeys(TASKS, "SUCCEEDED")),
    ]
    done = call("submit", spec, "--param", "data=gs://cats/a=b", "--param", "min_accuracy=1", "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (0, "")

    assert single_value(server.pipelines)["display_name"] == "catbreeds"
    assert single_value(server.versions)["pipeline_id"] == single_value(server.pipelines)["pipeline_id"]
    assert single_value(server.experiments)["display_name"] == "catbreeds"
    run = single_value(server.runs)
    assert run["runtime_config"]["parameters"] == {"data": "gs://cats/a=b", "min_accuracy": 1.0}
    assert run["experiment_id"] == single_value(server.experiments)["experiment_id"]

    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"Run {run['run_id']}: {url}/#/runs/details/{run['run_id']}" in lines
    assert [line for line in lines if line.startswith("[")] == [
        "[ 0/4] DataGate running",
        "[ 1/4] DataGate succeeded 0 s",
        "[ 1/4] Tuner running",
        "[ 2/4] GatePassed succeeded 0 s",
        "[ 3/4] ModelGate succeeded 0 s",
        "[ 4/4] Tuner succeeded 0 s",
    ]
    assert lines[-1] == "The run succeeded."


REJECTED = {"DataGate": "SUCCEEDED", "Tuner": "SUCCEEDED", "ModelGate": "SUCCEEDED", "GatePassed": "SKIPPED"}
NOTHING_NEW = {"DataGate": "SUCCEEDED", "Tuner": "SKIPPED", "ModelGate": "OMITTED", "GatePassed": "OMITTED"}
LARGE = 100_000  # bytes of a node's status; the server does not read 11 of these


@pytest.mark.parametrize(("node_bytes", "default_retries"), [(1000, False), (1000, True), (LARGE, True)])
@pytest.mark.parametrize(
    ("state", "tasks", "code", "message"),
    [
        ("SUCCEEDED", dict.fromkeys(TASKS, "SUCCEEDED"), 0, "The run succeeded."),
        ("SUCCEEDED", REJECTED, 3, "Rejected: nothing pushed."),
        ("SUCCEEDED", NOTHING_NEW, 0, "The run succeeded."),
        ("FAILED", {"Tuner": "FAILED"}, 1, "[ 1/4] Tuner                        failed\nThe run failed."),
        ("CANCELED", {}, 1, "The run was canceled."),
    ],
)
def test_the_exit_code_is_the_outcome_of_the_run(
    call, server, spec, state, tasks, code, message, node_bytes, default_retries
):
    server.script = [("RUNNING", {"DataGate": "RUNNING"}), (state, tasks)]
    server.node_bytes, server.default_retries = node_bytes, default_retries
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (code, "")
    assert message in done.stdout


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("SKIPPED", 3), ("OMITTED", 0)])
def test_the_verdict_of_a_pipeline_compiled_by_an_earlier_version_is_read(call, server, tmp_path, state, code):
    """Earlier versions named the task that follows the gate `Admitted`."""
    names = ("DataGate", "Tuner", "ModelGate", "Admitted")
    spec = compiled(tmp_path / "earlier.yaml", task_names=names)
    server.script = [("SUCCEEDED", {**dict.fromkeys(names, "SUCCEEDED"), "Admitted": state})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (code, "")
    assert done.stdout.endswith(
        "Rejected: nothing pushed. The run's gate verdict gives the reasons.\n" if code else "The run succeeded.\n"
    )


def test_progress_of_a_run_with_a_large_status_is_shown(call, server, spec):
    server.node_bytes = LARGE
    done = {"DataGate": "SUCCEEDED", "Tuner": "SUCCEEDED"}
    running = ("RUNNING", {**done, "ModelGate": "RUNNING", "GatePassed": "PENDING"})
    server.script = [("RUNNING", {"DataGate": "RUNNING"}), *[running] * 7, ("RUNNING", {}), 401]
    output = call("submit", spec, "--poll-interval", "0.01").stdout
    assert [" ".join(line.split()) for line in output.splitlines() if line.startswith("[")] == [
        "[ 0/4] DataGate running",
        "[ 1/4] DataGate succeeded 0 s",
        "[ 1/4] ModelGate running",
        "[ 2/4] Tuner succeeded 0 s",
    ]


@pytest.mark.parametrize("tasks", [REJECTED, dict.fromkeys(TASKS, "SUCCEEDED")])
def test_a_run_whose_outcome_cannot_be_read_is_a_failure(call, server, spec, tasks):
    server.v1beta1, server.node_bytes = False, LARGE
    server.script = [("RUNNING", {"DataGate": "RUNNING"}), ("SUCCEEDED", tasks)]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert done.exit_code == 1
    assert "it is unknown whether a model was pushed" in done.stderr
    assert "succeeded" not in done.stdout


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({}, "the server returned no Workflow"),
        ({"pipeline_runtime": {"workflow_manifest": ""}}, "the server returned no Workflow"),
        ({"pipeline_runtime": [1]}, "the server returned no Workflow"),
        ({"pipeline_runtime": {"workflow_manifest": "{}"}}, "the server's Workflow cannot be read"),
        (
            {"pipeline_runtime": {"workflow_manifest": '{"metadata": {}, "status": {"compressedNodes": "H4sIAAAA"}}'}},
            "the server's Workflow cannot be read",
        ),
        (
            {
                "pipeline_runtime": {
                    "workflow_manifest": '{"metadata": {}, "status": {"offloadNodeStatusVersion": "1"}}'
                }
            },
            "Argo Workflows stores the status of the nodes in a separate database",
        ),
    ],
)
def test_a_workflow_without_a_readable_outcome_is_a_failure(call, server, spec, monkeypatch, response, reason):
    server.node_bytes, server.script = LARGE, [("SUCCEEDED", REJECTED)]
    monkeypatch.setattr(server, "get_run_v1beta1", lambda run_id: response)
    done = call("submit", spec, "--poll-interval", "0.01")
    assert done.exit_code == 1
    assert re.search(f"it is unknown whether a model was pushed: http.*: {reason}", done.stderr)


def test_the_workflow_is_not_needed_if_the_tasks_of_the_run_contain_the_outcome(call, server, spec):
    server.v1beta1 = False
    for tasks, code in [(REJECTED, 3), (dict.fromkeys(TASKS, "SUCCEEDED"), 0)]:
        server.script = [("SUCCEEDED", tasks)]
        assert call("submit", spec, "--poll-interval", "0.01").exit_code == code


@pytest.mark.parametrize(("node", "subject"), [("Tuner", "Tuner"), ("Tuner-driver", "the driver of Tuner")])
@pytest.mark.parametrize("node_bytes", [1000, LARGE])
@pytest.mark.parametrize("default_retries", [False, True])
def test_a_failed_task_is_printed_with_its_reason_and_the_command_for_its_log(
    call, server, spec, node, subject, node_bytes, default_retries
):
    server.node_bytes, server.default_retries = node_bytes, default_retries
    server.messages = {"Tuner-driver": "Error (exit code 1)", "executor(0)": "OOMKilled (exit code 137)"}
    server.script = [("FAILED", {**dict.fromkeys(["DataGate", "ModelGate", "GatePassed"], "OMITTED"), node: "FAILED"})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert done.exit_code == 1
    reason = server.messages["executor(0)" if node == "Tuner" else node]
    template = "retry-system-container-impl" if node == "Tuner" else "system-container-driver"
    *_, failed, log = done.stdout.splitlines()
    assert failed == f"{subject} failed: {reason}"
    assert re.fullmatch(rf"    kubectl logs -n cats catbreeds-x7k2p-{template}-\d+ -c main", log)


def test_a_run_that_argo_does_not_start_is_printed_with_the_reason_from_argo(call, server, spec):
    server.invalid = "invalid spec: templates.root.tasks.Tuner failed to resolve"
    server.script = [("FAILED", {})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (1, "")
    assert "no node status: invalid spec: templates.root.tasks.Tuner failed to resolve" in done.stdout


def test_a_task_that_fails_without_a_pod_is_printed_with_the_command_for_the_logs_of_the_run(call, server, spec):
    server.podless, server.messages = {"Tuner"}, {"Tuner": "exceeded quota: compute"}
    server.script = [("FAILED", {"DataGate": "SUCCEEDED", "Tuner": "FAILED"})]
    *_, failed, log = call("submit", spec, "--poll-interval", "0.01").stdout.splitlines()
    assert failed == "Tuner failed: exceeded quota: compute"
    pods = f"-n kubeflow -l pipeline/runid={single_value(server.runs)['run_id']}"
    assert log == f"    kubectl logs {pods} -c main --prefix --tail 50"


def test_a_run_that_argo_ends_without_a_failed_task_is_printed_with_the_reason_from_argo(call, server, spec):
    server.ended = "Max duration limit exceeded"
    server.script = [("FAILED", {"DataGate": "SUCCEEDED", "Tuner": "RUNNING"})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (1, "")
    *_, failed, log = done.stdout.splitlines()
    assert failed == "No task failed; Argo Workflows ended the run: Max duration limit exceeded"
    assert log.startswith(f"    kubectl logs -n kubeflow -l pipeline/runid={single_value(server.runs)['run_id']} ")


@pytest.mark.parametrize("namespace", ["", "alice"])
def test_a_failed_task_is_printed_even_if_the_workflow_cannot_be_read(call, server, spec, namespace):
    server.v1beta1, server.namespaces = False, {namespace} - {""}
    server.script = [("FAILED", {"Tuner-driver": "FAILED"})]
    done = call("submit", spec, "--poll-interval", "0.01", KF_PIPELINES_NAMESPACE=namespace)
    assert done.exit_code == 1
    assert "The cause of the failure cannot be read" in done.stdout
    assert re.search(r"^Tuner-driver failed: pods catbreeds-x7k2p-\d+$", done.stdout, re.MULTILINE)
    pods = f"-n {namespace or 'kubeflow'} -l pipeline/runid={single_value(server.runs)['run_id']}"
    assert done.stdout.splitlines()[-1] == f"    kubectl logs {pods} -c main --prefix --tail 50"


@pytest.mark.parametrize("path", sorted((ROOT / "kfp_specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_compiled_pipelines_are_accepted_and_their_verdict_is_read(call, server, path):
    pipeline = next(yaml.load_all(path.read_bytes(), yaml.CSafeLoader))
    gate_passed = pipeline["root"]["dag"]["tasks"]["GatePassed"]
    assert "['_ModelGate.decision'].artifacts[0].metadata['refused'] == 0" in gate_passed["triggerPolicy"]["condition"]
    for state, code in [("SUCCEEDED", 0), ("SKIPPED", 3)]:
        server.script = [("SUCCEEDED", {"ModelGate": "SUCCEEDED", "GatePassed": state})]
        assert call("submit", path, "--param", "gate_policy=better", "--poll-interval", "0.01").exit_code == code
    assert call("schedule", path, "--cron", "@daily").exit_code == 0
    assert single_value(server.versions)["pipeline_spec"] == pipeline


def test_only_a_changed_pipeline_creates_a_new_version(call, server, spec):
    server.page = 1  # existing items are on later pages, too
    for _ in range(2):
        assert call("submit", spec, "--no-wait").exit_code == 0
    assert (len(server.versions), len(server.experiments), len(server.runs)) == (1, 1, 2)
    compiled(spec, {**PARAMETERS, "data": {"parameterType": "STRING", "defaultValue": "/elsewhere"}})
    assert call("submit", spec, "--no-wait", "--experiment", "another").exit_code == 0
    assert (len(server.pipelines), len(server.versions), len(server.experiments)) == (1, 2, 2)


@pytest.mark.parametrize("experiment", ["A+B", "100 %", "50%25", 'Größe "7" & more'])
def test_an_experiment_of_any_name_is_reused(call, server, spec, experiment):
    for _ in range(2):
        done = call("submit", spec, "--no-wait", "--experiment", experiment)
        assert (done.exit_code, done.stderr) == (0, "")
    assert single_value(server.experiments)["display_name"] == experiment
    assert call("schedule", spec, "--cron", "@daily", "--experiment", experiment).exit_code == 0
    assert "catbreeds  active" in call("schedule", spec, "--list", "--experiment", experiment).stdout


def test_a_rejected_upload_is_reported_with_the_reason(call, server, spec):
    server.upload_error = "Failed to create a pipeline version: resolver not implemented yet"
    done = call("submit", spec)
    assert_rejected(done, "400: Failed to create a pipeline version: resolver not implemented yet")
    assert "at stack" not in done.stderr


@pytest.mark.parametrize("root", ["ftp://x/y", "/runs", "s3://", "s3:/bucket/runs", "S3://bucket", "minio:///runs"])
@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "@daily"]])
def test_an_unsupported_pipeline_root_is_rejected_before_any_request(call, server, spec, command, root):
    done = call(command[0], spec, *command[1:], "--pipeline-root", root)
    assert_rejected(done, f"--pipeline-root {root}: write s3://BUCKET/PATH, minio://BUCKET/PATH or gs://BUCKET/PATH")
    assert server.requests == []


def test_with_no_wait_the_run_is_not_followed(call, server, spec):
    assert call("submit", spec, "--no-wait", "--pipeline-root", "minio://cats/runs").exit_code == 0
    assert not [request for request in server.requests if request.startswith("GET /runs")]
    assert single_value(server.runs)["runtime_config"]["pipeline_root"] == "minio://cats/runs"


def test_a_run_is_followed_after_a_broken_connection(call, server, spec):
    server.script = [("RUNNING", {}), 503, 503, ("SUCCEEDED", dict.fromkeys(TASKS, "SUCCEEDED"))]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr.count("trying again")) == (0, 1)


def test_a_run_is_not_followed_after_the_login_expires(call, server, spec):
    server.script = [("RUNNING", {}), 401]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, "trying again" in done.stderr) == (2, False)
    assert "pass a new --token" in done.stderr
    assert "The run continues" in done.stderr


@pytest.mark.parametrize(
    ("parameter", "parts"),
    [
        ("photos=x", ["has no parameter 'photos'", "available: breeds, data, dry, min_accuracy, min_slice, run_date"]),
        ("data", ["write --param name=value"]),
        ("min_accuracy=high", ["--param min_accuracy=high: must be a number"]),
        ("min_accuracy=nan", ["must be a number"]),
        ("min_slice=0.5", ["must be an integer"]),
        ("dry=1", ["must be true or false"]),
        ('breeds={"a": 1}', ["must be a list in JSON"]),
        ('breeds=[{"a": 1, "a": 2}]', ["must be a list in JSON"]),
        (f"data={'x' * 10_000}", ["the limit of Kubeflow Pipelines is 10,000"]),
    ],
)
@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "@daily"]])
def test_an_invalid_parameter_is_rejected_before_any_request(call, server, spec, command, parameter, parts):
    assert_rejected(call(command[0], spec, *command[1:], "--param", parameter), *parts)
    assert server.requests == []


def test_a_parameter_without_a_default_is_required(call, server, tmp_path):
    spec = compiled(tmp_path / "bare.yaml", {"data": {"parameterType": "STRING"}})
    assert_rejected(call("submit", spec), "missing parameters: data; pass --param data=...")
    assert call("submit", spec, "--no-wait", "--param", "data=cats").exit_code == 0
    assert single_value(server.runs)["runtime_config"]["parameters"] == {"data": "cats"}


def test_a_file_that_is_not_a_compiled_pipeline_is_rejected(call, tmp_path):
    assert_rejected(call("submit", tmp_path / "gone.yaml"), "gone.yaml: no such file", "catbreeds compile")
    (tmp_path / "workflow.yaml").write_text("kind: Workflow")
    assert_rejected(call("submit", tmp_path / "workflow.yaml"), "workflow.yaml: not a compiled pipeline")
    twice = tmp_path / "twice.yaml"
    twice.write_text("schemaVersion: 2.1.0\n" + compiled(twice).read_text())
    assert_rejected(call("submit", twice), "twice.yaml: not a compiled pipeline", "duplicate key 'schemaVersion'")
    old = compiled(tmp_path / "old.yaml", schema="2.0.0")
    assert_rejected(call("submit", old), "schemaVersion 2.0.0, but 2.1.0 is required")


@pytest.mark.parametrize(
    ("body", "response", "message"),
    [
        (b'{"multi_user": tr', send_file, "returned invalid JSON (17 characters received)"),
        (b'{"multi_user": true}', cut_after(9), "no response from"),
        (b"[1, 2]", send_file, "returned a web page, probably its login page, instead of"),
        (b"<html>sign in", send_file, "returned a web page, probably its login page, instead of"),
        (b"", send_file, "returned a web page, probably its login page, instead of"),
        (b'{"multi_user": "\xff"}', send_file, "returned a response that is not text"),
        (
            b"\xff",
            lambda handler, _: (handler.head(502, 1), handler.wfile.write(b"\xff")),
            "returned a response that is not text",
        ),
    ],
)
def test_a_truncated_or_foreign_response_is_reported(spec, body, response, message):
    with flaky_server.serving() as server:
        server.files["/apis/v2beta1/healthz"] = body
        server.responses["/apis/v2beta1/healthz"] = [response] * 9
        done = catbreeds("submit", spec, "--host", server.address)
    assert_rejected(done, f"{server.address}", message)


def test_an_interrupted_submit_reports_that_the_run_continues(server, url, spec):
    server.script = [("RUNNING", {"Tuner": "RUNNING"})]
    command = [CATBREEDS, "submit", spec, "--host", url, "--poll-interval", "0.01"]
    with fork_server.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while "Tuner" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors.split(":")[1]) == (1, " stopped following; the run continues"), errors


# Connection to the server.


def test_the_error_for_a_missing_host_explains_how_to_connect_to_one(call_with_kubeconfig, spec):
    done = call_with_kubeconfig({}, "submit", spec)
    assert_rejected(done, "pass --host", "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80")


def test_the_error_names_a_host_that_does_not_respond(call, server, spec):
    with serving(server) as closed_url:
        pass
    assert_rejected(
        call("submit", spec, "--host", closed_url), f"no response from {closed_url}", "kubectl port-forward"
    )
    assert_rejected(call("submit", spec, "--host", "localhost:8080"), "write http://localhost:8080")


def test_an_address_copied_from_the_browser_works(call, url, spec):
    assert call("submit", spec, "--no-wait", "--host", f"{url}/#/runs").exit_code == 0


def test_the_ui_may_have_a_different_address(call, spec):
    done = call("submit", spec, "--no-wait", "--ui", "https://cats.example/pipeline/")
    assert ": https://cats.example/pipeline/#/runs/details/" in done.stdout


def test_the_kubectl_context_determines_the_server(call_with_kubeconfig, server, url, spec):
    server.root = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    server.token = "from-kubectl"
    config = {
        "current-context": "here",
        "clusters": [
            {"name": "kind", "cluster": {"server": url}},
            {"name": "bare", "cluster": {"server": f"{url}/bare"}},
        ],
        "users": [{"name": "me", "user": {"token": "from-kubectl"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "kind", "user": "me"}},
            {"name": "there", "context": {"cluster": "bare", "user": "me"}},
        ],
    }
    done = call_with_kubeconfig(config, "submit", spec, "--no-wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert "http://localhost:8080/#/runs/details/" in done.stdout
    assert_rejected(
        call_with_kubeconfig(config, "submit", spec, "--context", "there"),
        "not in namespace kubeflow",
        "--host",
    )
    assert_rejected(
        call_with_kubeconfig(config, "submit", spec, "--context", "nowhere"),
        "nowhere",
        "pass --host",
    )
    server.token = "renewed"
    assert_rejected(
        call_with_kubeconfig(config, "submit", spec),
        "rejects your credentials: sign in to the cluster again (401",
    )


def test_the_error_names_a_damaged_kubectl_configuration(call_with_kubeconfig, spec, tmp_path):
    assert_rejected(call_with_kubeconfig("hello", "submit", spec), f"KUBECONFIG={tmp_path}/kubeconfig: cannot be read")


def test_an_untrusted_certificate_is_rejected_unless_it_is_passed_as_an_option(call, server, spec, tmp_path):
    certificate = tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*command, "-keyout", certificate, "-out", tmp_path / "part"], check=True, capture_output=True)
    with certificate.open("a") as both:
        both.write((tmp_path / "part").read_text())
    with serving(server, certificate) as url:
        assert_rejected(call("submit", spec, "--host", url), "no TLS connection", "--ca-cert")
        assert call("submit", spec, "--no-wait", "--host", url, "--ca-cert", certificate).exit_code == 0
        assert_rejected(call("submit", spec, "--host", url.replace("https", "http")), url.replace("https", "http"))


def test_a_token_authenticates_the_client(call, server, spec):
    server.token = "secret"
    for variables in ({}, {"KF_PIPELINES_TOKEN": "stale"}):
        assert_rejected(call("submit", spec, **variables), "rejects your credentials: pass a new --token", "401")
    assert call("submit", spec, "--no-wait", KF_PIPELINES_TOKEN="secret").exit_code == 0


def test_a_login_page_is_reported(call, server, spec):
    server.login = True
    assert_rejected(call("submit", spec), "web page, probably its login page", "--cookie")


def test_a_server_of_an_older_version_is_reported(call, server, spec):
    server.root = "/v1"
    assert_rejected(call("submit", spec), "no API of Kubeflow Pipelines 2", "older")


def test_a_multi_user_server_requires_a_permitted_namespace(call, server, spec):
    server.namespaces = {"alice"}
    assert_rejected(call("submit", spec), "is a multi-user server: pass --namespace")
    wrong = call("submit", spec, "--namespace", "bob")
    assert_rejected(wrong, "denies access to namespace 'bob'", "not authorized")
    assert "at stack" not in wrong.stderr
    assert call("submit", spec, "--no-wait", KF_PIPELINES_NAMESPACE="alice").exit_code == 0
    assert single_value(server.experiments)["namespace"] == "alice"


def test_a_single_user_server_has_no_namespaces(call, spec):
    assert_rejected(call("submit", spec, "--namespace", "kubeflow"), "remove --namespace")


# Schedules.


@pytest.mark.parametrize(
    ("cron", "six"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("*/30 8-10 1,15 * *", "0 0,30 8,9,10 1,15 * *"),
        ("0 3 * jan sun", "0 0 3 * 1 0"),
        ("0 3 * * 7", "0 0 3 * * 0"),
        ("0 22 * * fri-mon", "0 0 22 * * 0,1,5,6"),
        ("@weekly", "0 0 0 * * 0"),
    ],
)
def test_five_cron_fields_are_converted_to_the_six_of_kubeflow(call, server, spec, cron, six):
    done = call("schedule", spec, "--cron", cron, "--param", "data=cats")
    assert (done.exit_code, done.stderr) == (0, "")
    schedule = single_value(server.schedules)
    assert schedule["trigger"] == {"cron_schedule": {"cron": six}}
    assert (schedule["max_concurrency"], schedule["no_catchup"], schedule["status"]) == ("1", True, "ENABLED")
    assert schedule["runtime_config"]["parameters"] == {"data": "cats", "run_date": "[[ScheduledTime]]"}
    start, shown = datetime.datetime.now(datetime.UTC), done.stdout.splitlines()[-1]
    assert shown.startswith("Next times, in UTC unless the server is configured otherwise: ")
    assert f"{croniter(cron, start).get_next(datetime.datetime):%a %Y-%m-%d %H:%M}" in shown


@pytest.mark.parametrize(
    ("cron", "parts"),
    [
        ("0 0 3 * * 1", ["6 fields; write five: minute, hour, day of the month, month, day of the week", "seconds"]),
        ("daily", ["1 fields; write five"]),
        ("", ["0 fields; write five"]),
        ("61 * * * *", ["out of range"]),
        ("0 3 30 2 *", ["the five fields are"]),
        ("0 3 l * *", ["does not support 'l'"]),
        ("0 3 * * mon#2", ["does not support '#'"]),
        ("r 3 * * *", ["does not support 'r'"]),
        ("@reboot", ["@reboot"]),
    ],
)
def test_an_invalid_cron_expression_is_rejected_with_a_message(call, server, spec, cron, parts):
    assert_rejected(call("schedule", spec, "--cron", cron), *parts)
    assert server.requests == []


def test_a_schedule_can_be_replaced_paused_resumed_listed_and_deleted(call, server, spec):
    assert call("schedule", spec, "--cron", "0 3 * * 1").exit_code == 0
    assert call("schedule", spec, "--cron", "30 4 * * *").exit_code == 0
    assert single_value(server.schedules)["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * *"
    assert call("schedule", spec, "--pause").exit_code == 0
    assert server.active() == []
    shown = call("schedule", spec, "--list").stdout
    assert "catbreeds  paused  '30 4 * * *', next " in shown
    assert "run_date=[[ScheduledTime]]" in shown
    resumed = call("schedule", spec, "--resume")
    assert resumed.exit_code == 0
    assert "If the schedule missed runs while it was paused, the latest one starts now." in resumed.stdout
    assert server.active() == [single_value(server.schedules)]
    assert "catbreeds  active" in call("schedule", spec, "--list").stdout
    assert call("schedule", spec, "--cron", "@daily", "--pause").exit_code == 0
    assert (single_value(server.schedules)["status"], server.max_active) == ("DISABLED", 1)
    assert call("schedule", spec, "--delete").exit_code == 0
    assert server.schedules == {}
    assert "No schedule in experiment catbreeds" in call("schedule", spec, "--list").stdout
    assert_rejected(call("schedule", spec, "--pause"), "no schedule 'catbreeds' in this experiment")


def test_schedules_with_other_names_are_not_changed(call, server, spec):
    call("schedule", spec, "--cron", "@daily")
    server.transfer_schedules("by hand", "@every 1h")
    assert call("schedule", spec, "--cron", "@weekly").exit_code == 0
    assert sorted(schedule["display_name"] for schedule in server.active()) == ["by hand", "catbreeds"]
    assert "by hand  active  '@every 1h', next unknown" in call("schedule", spec, "--list").stdout
    assert call("schedule", spec, "--delete").exit_code == 0
    assert single_value(server.schedules)["display_name"] == "by hand"


def test_an_interrupted_update_never_leaves_two_active_schedules_and_can_be_rerun(call, server, spec):
    server.page = 1
    update = ("schedule", spec, "--cron", "@weekly")
    assert call("schedule", spec, "--cron", "@daily").exit_code == 0
    before = server.changes
    assert call(*update).exit_code == 0
    steps = server.changes - before
    assert steps == 3  # create, delete the old one, enable
    for done in range(steps):
        server.changes_left = done
        broken = call(*update)
        assert (broken.exit_code, len(server.active()) <= 1) == (2, True), broken.stderr
        if len(server.schedules) > 1:
            assert_rejected(call("schedule", spec, "--resume"), "an update was interrupted; rerun it with --cron")
        server.changes_left = None
        assert call(*update).exit_code == 0
        assert server.active() == [single_value(server.schedules)]
    assert server.max_active == 1


def test_a_missing_experiment_is_reported_and_an_archived_one_is_not_used(call, server, spec):
    assert_rejected(call("schedule", spec, "--list"), "no experiment 'catbreeds'; available: none")
    call("submit", spec, "--no-wait")
    done = call("schedule", spec, "--pause", "--experiment", "cats")
    assert_rejected(done, "no experiment 'cats'; available: 'catbreeds'")
    single_value(server.experiments)["storage_state"] = "ARCHIVED"
    done = call("submit", spec, "--no-wait")
    assert done.exit_code == 2
    assert "experiment 'catbreeds' is archived: restore it in the UI" in done.stderr


@pytest.mark.parametrize(
    "options",
    [[], ["--pause", "--resume"], ["--list", "--cron", "@daily"], ["--delete", "--param", "data=x"]],
)
def test_actions_on_a_schedule_exclude_each_other(call, server, spec, options):
    assert call("schedule", spec, *options).exit_code == 2
    assert server.requests == []


# Help and documentation.


def test_help_does_not_import_the_client():
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "print('LOADED', *sorted({'kfp', 'kfp_server_api', 'kubernetes', 'croniter'} & set(sys.modules)))"
    )
    for command in ("submit", "schedule"):
        done = subprocess.run(
            [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1].split() == ["LOADED"]


def test_the_commands_and_manifests_in_the_documentation_are_valid():
    page = (ROOT / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    catbreeds ")]
    assert {command[0] for command in commands} >= {"submit", "schedule", "compile", "sample-data"}
    for name, *arguments in commands:
        typer.main.get_command(app).commands[name].make_context(name, arguments)
    (manifest,) = re.findall(r"kubectl apply -f - <<END\n(.*?)\n    END", page, re.DOTALL)
    for document in yaml.safe_load_all(textwrap.dedent(manifest)):
        kubernetes_validate.validate(document, "1.31", strict=True)
