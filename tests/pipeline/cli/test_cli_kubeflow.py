"""`catbreeds submit` and `catbreeds schedule` against a server that checks each request by the official models."""

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
from tests.pipeline.flaky_server import behave, cut_after
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


def compiled(path: Path, parameters: dict = PARAMETERS, schema: str = "2.1.0") -> Path:
    """A compiled pipeline: the pipeline spec, then the platform spec as a second document."""
    container = {"image": "catbreeds-pipeline:0.1.0", "command": ["true"]}
    tasks = {name: {"taskInfo": {"name": name}, "componentRef": {"name": name}} for name in TASKS}
    pipeline = {
        "pipelineInfo": {"name": "catbreeds"},
        "schemaVersion": schema,
        "deploymentSpec": {"executors": {name: {"container": container} for name in TASKS}},
        "components": {name: {"executorLabel": name} for name in TASKS},
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
    """Calls the command line for that server, in this process: there are many calls."""

    def call(*arguments: object, **variables: str) -> Result:
        done = CliRunner().invoke(app, list(map(str, arguments)), env={"KF_PIPELINES_ENDPOINT": url, **variables})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done

    return call


@pytest.fixture
def call_by_kubectl(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Calls `catbreeds` with a configuration of kubectl and without a host."""

    def call(config: dict | str, *arguments: object) -> subprocess.CompletedProcess:
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        command = [str(CATBREEDS), *map(str, arguments)]
        environment = {**os.environ, "KF_PIPELINES_ENDPOINT": "", "KUBECONFIG": str(file)}
        # A process of its own: the Kubernetes client reads KUBECONFIG while it is imported.
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return call


def assert_refused(done: Result | subprocess.CompletedProcess, *parts: str) -> None:
    code = done.exit_code if isinstance(done, Result) else done.returncode
    assert (code, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def only(items: dict[str, dict]) -> dict:
    (item,) = items.values()
    return item


def test_a_submitted_pipeline_is_uploaded_run_and_followed_to_its_end(call, server, url, spec):
    server.script = [
        ("PENDING", {}),
        ("RUNNING", {"DataGate": "RUNNING"}),
        ("RUNNING", {"DataGate": "SUCCEEDED", "Tuner": "RUNNING"}),
        ("SUCCEEDED", dict.fromkeys(TASKS, "SUCCEEDED")),
    ]
    done = call("submit", spec, "--param", "data=gs://cats/a=b", "--param", "min_accuracy=1", "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (0, "")

    assert only(server.pipelines)["display_name"] == "catbreeds"
    assert only(server.versions)["pipeline_id"] == only(server.pipelines)["pipeline_id"]
    assert only(server.experiments)["display_name"] == "catbreeds"
    run = only(server.runs)
    assert run["runtime_config"]["parameters"] == {"data": "gs://cats/a=b", "min_accuracy": 1.0}
    assert run["experiment_id"] == only(server.experiments)["experiment_id"]

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


REFUSED = {"DataGate": "SUCCEEDED", "Tuner": "SUCCEEDED", "ModelGate": "SUCCEEDED", "GatePassed": "SKIPPED"}
NOTHING_NEW = {"DataGate": "SUCCEEDED", "Tuner": "SKIPPED", "ModelGate": "OMITTED", "GatePassed": "OMITTED"}
LARGE = 100_000  # bytes of a node's status, of which 11 are more than the server reads


@pytest.mark.parametrize(("node_bytes", "default_retries"), [(1000, False), (1000, True), (LARGE, True)])
@pytest.mark.parametrize(
    ("state", "tasks", "code", "told"),
    [
        ("SUCCEEDED", dict.fromkeys(TASKS, "SUCCEEDED"), 0, "The run succeeded."),
        ("SUCCEEDED", REFUSED, 3, "The gate refused"),
        ("SUCCEEDED", NOTHING_NEW, 0, "The run succeeded."),
        ("FAILED", {"Tuner": "FAILED"}, 1, "[ 1/4] Tuner                        failed\nThe run failed."),
        ("CANCELED", {}, 1, "The run canceled."),
    ],
)
def test_the_exit_code_tells_how_the_run_ended(
    call, server, spec, state, tasks, code, told, node_bytes, default_retries
):
    server.script = [("RUNNING", {"DataGate": "RUNNING"}), (state, tasks)]
    server.node_bytes, server.default_retries = node_bytes, default_retries
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (code, "")
    assert told in done.stdout


def test_progress_of_a_run_with_a_large_status_goes_on(call, server, spec):
    server.node_bytes = LARGE
    done = {"DataGate": "SUCCEEDED", "Tuner": "SUCCEEDED"}
    running = ("RUNNING", {**done, "ModelGate": "RUNNING", "GatePassed": "PENDING"})
    server.script = [("RUNNING", {"DataGate": "RUNNING"}), *[running] * 7, ("RUNNING", {}), 401]
    shown = call("submit", spec, "--poll-interval", "0.01").stdout
    assert [" ".join(line.split()) for line in shown.splitlines() if line.startswith("[")] == [
        "[ 0/4] DataGate running",
        "[ 1/4] DataGate succeeded 0 s",
        "[ 1/4] ModelGate running",
        "[ 2/4] Tuner succeeded 0 s",
    ]


@pytest.mark.parametrize("tasks", [REFUSED, dict.fromkeys(TASKS, "SUCCEEDED")])
def test_a_run_whose_outcome_cannot_be_read_is_no_success(call, server, spec, tasks):
    server.v1beta1, server.node_bytes = False, LARGE
    server.script = [("RUNNING", {"DataGate": "RUNNING"}), ("SUCCEEDED", tasks)]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert done.exit_code == 1
    assert "whether a model was pushed cannot be read" in done.stderr
    assert "succeeded" not in done.stdout


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, "the server shows no Workflow of it"),
        ({"pipeline_runtime": {"workflow_manifest": ""}}, "the server shows no Workflow of it"),
        ({"pipeline_runtime": [1]}, "the server shows no Workflow of it"),
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
            "Argo Workflows keeps the status of the nodes in a database of its own",
        ),
    ],
)
def test_a_workflow_that_does_not_tell_the_outcome_is_no_success(call, server, spec, monkeypatch, answer, why):
    server.node_bytes, server.script = LARGE, [("SUCCEEDED", REFUSED)]
    monkeypatch.setattr(server, "get_run_v1beta1", lambda run_id: answer)
    done = call("submit", spec, "--poll-interval", "0.01")
    assert done.exit_code == 1
    assert re.search(f"whether a model was pushed cannot be read: http.*: {why}", done.stderr)


def test_an_outcome_that_the_server_reports_itself_needs_no_workflow(call, server, spec):
    server.v1beta1 = False
    for tasks, code in [(REFUSED, 3), (dict.fromkeys(TASKS, "SUCCEEDED"), 0)]:
        server.script = [("SUCCEEDED", tasks)]
        assert call("submit", spec, "--poll-interval", "0.01").exit_code == code


@pytest.mark.parametrize(("node", "told"), [("Tuner", "Tuner"), ("Tuner-driver", "the driver of Tuner")])
@pytest.mark.parametrize("node_bytes", [1000, LARGE])
@pytest.mark.parametrize("default_retries", [False, True])
def test_a_task_that_failed_is_named_with_the_reason_and_the_command_for_its_log(
    call, server, spec, node, told, node_bytes, default_retries
):
    server.node_bytes, server.default_retries = node_bytes, default_retries
    server.messages = {"Tuner-driver": "Error (exit code 1)", "executor(0)": "OOMKilled (exit code 137)"}
    server.script = [("FAILED", {**dict.fromkeys(["DataGate", "ModelGate", "GatePassed"], "OMITTED"), node: "FAILED"})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert done.exit_code == 1
    reason = server.messages["executor(0)" if node == "Tuner" else node]
    template = "retry-system-container-impl" if node == "Tuner" else "system-container-driver"
    *_, failed, log = done.stdout.splitlines()
    assert failed == f"{told} failed: {reason}"
    assert re.fullmatch(rf"    kubectl logs -n cats catbreeds-x7k2p-{template}-\d+ -c main", log)


def test_a_run_that_argo_does_not_start_is_told_with_argo_s_reason(call, server, spec):
    server.invalid = "invalid spec: templates.root.tasks.Tuner failed to resolve"
    server.script = [("FAILED", {})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (1, "")
    assert "no status of its nodes: invalid spec: templates.root.tasks.Tuner failed to resolve" in done.stdout


def test_a_task_that_fails_before_it_has_a_pod_is_named_with_the_command_for_the_run_s_logs(call, server, spec):
    server.podless, server.messages = {"Tuner"}, {"Tuner": "exceeded quota: compute"}
    server.script = [("FAILED", {"DataGate": "SUCCEEDED", "Tuner": "FAILED"})]
    *_, failed, log = call("submit", spec, "--poll-interval", "0.01").stdout.splitlines()
    assert failed == "Tuner failed: exceeded quota: compute"
    pods = f"-n kubeflow -l pipeline/runid={only(server.runs)['run_id']}"
    assert log == f"    kubectl logs {pods} -c main --prefix --tail 50"


def test_a_run_that_argo_ends_while_no_task_fails_is_told_with_argo_s_reason(call, server, spec):
    server.ended = "Max duration limit exceeded"
    server.script = [("FAILED", {"DataGate": "SUCCEEDED", "Tuner": "RUNNING"})]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr) == (1, "")
    *_, failed, log = done.stdout.splitlines()
    assert failed == "No task failed; Argo Workflows ended the run: Max duration limit exceeded"
    assert log.startswith(f"    kubectl logs -n kubeflow -l pipeline/runid={only(server.runs)['run_id']} ")


@pytest.mark.parametrize("namespace", ["", "alice"])
def test_a_failure_is_named_also_when_the_workflow_cannot_be_read(call, server, spec, namespace):
    server.v1beta1, server.namespaces = False, {namespace} - {""}
    server.script = [("FAILED", {"Tuner-driver": "FAILED"})]
    done = call("submit", spec, "--poll-interval", "0.01", KF_PIPELINES_NAMESPACE=namespace)
    assert done.exit_code == 1
    assert "Why it failed cannot be read" in done.stdout
    assert re.search(r"^Tuner-driver failed: pods catbreeds-x7k2p-\d+$", done.stdout, re.MULTILINE)
    pods = f"-n {namespace or 'kubeflow'} -l pipeline/runid={only(server.runs)['run_id']}"
    assert done.stdout.splitlines()[-1] == f"    kubectl logs {pods} -c main --prefix --tail 50"


@pytest.mark.parametrize("path", sorted((ROOT / "kfp_specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_compiled_pipelines_are_accepted_and_tell_what_the_gate_decided(call, server, path):
    pipeline = next(yaml.load_all(path.read_bytes(), yaml.CSafeLoader))
    admitted = pipeline["root"]["dag"]["tasks"]["GatePassed"]
    assert "['_ModelGate.decision'].artifacts[0].metadata['refused'] == 0" in admitted["triggerPolicy"]["condition"]
    for state, code in [("SUCCEEDED", 0), ("SKIPPED", 3)]:
        server.script = [("SUCCEEDED", {"ModelGate": "SUCCEEDED", "GatePassed": state})]
        assert call("submit", path, "--param", "gate_policy=better", "--poll-interval", "0.01").exit_code == code
    assert call("schedule", path, "--cron", "@daily").exit_code == 0
    assert only(server.versions)["pipeline_spec"] == pipeline


def test_an_unchanged_pipeline_makes_no_new_version_and_a_changed_one_does(call, server, spec):
    server.page = 1  # so that what is there is found beyond the first page
    for _ in range(2):
        assert call("submit", spec, "--no-wait").exit_code == 0
    assert (len(server.versions), len(server.experiments), len(server.runs)) == (1, 1, 2)
    compiled(spec, {**PARAMETERS, "data": {"parameterType": "STRING", "defaultValue": "/elsewhere"}})
    assert call("submit", spec, "--no-wait", "--experiment", "another").exit_code == 0
    assert (len(server.pipelines), len(server.versions), len(server.experiments)) == (1, 2, 2)


@pytest.mark.parametrize("experiment", ["A+B", "100 %", "50%25", 'Größe "7" & more'])
def test_an_experiment_of_any_name_is_found_again(call, server, spec, experiment):
    for _ in range(2):
        done = call("submit", spec, "--no-wait", "--experiment", experiment)
        assert (done.exit_code, done.stderr) == (0, "")
    assert only(server.experiments)["display_name"] == experiment
    assert call("schedule", spec, "--cron", "@daily", "--experiment", experiment).exit_code == 0
    assert "catbreeds  active" in call("schedule", spec, "--list", "--experiment", experiment).stdout


def test_why_an_upload_is_refused_is_told(call, server, spec):
    server.refuses_uploads = "Failed to create a pipeline version: resolver not implemented yet"
    done = call("submit", spec)
    assert_refused(done, "400: Failed to create a pipeline version: resolver not implemented yet")
    assert "at stack" not in done.stderr


@pytest.mark.parametrize("root", ["ftp://x/y", "/runs", "s3://", "s3:/bucket/runs", "S3://bucket", "minio:///runs"])
@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "@daily"]])
def test_a_pipeline_root_that_the_server_cannot_use_is_refused_before_anything_is_sent(
    call, server, spec, command, root
):
    done = call(command[0], spec, *command[1:], "--pipeline-root", root)
    assert_refused(done, f"--pipeline-root {root}: write s3://BUCKET/PATH, minio://BUCKET/PATH or gs://BUCKET/PATH")
    assert server.requests == []


def test_no_wait_leaves_the_run_alone(call, server, spec):
    assert call("submit", spec, "--no-wait", "--pipeline-root", "minio://cats/runs").exit_code == 0
    assert not [request for request in server.requests if request.startswith("GET /runs")]
    assert only(server.runs)["runtime_config"]["pipeline_root"] == "minio://cats/runs"


def test_a_connection_that_breaks_does_not_end_the_watch(call, server, spec):
    server.script = [("RUNNING", {}), 503, 503, ("SUCCEEDED", dict.fromkeys(TASKS, "SUCCEEDED"))]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, done.stderr.count("trying again")) == (0, 1)


def test_a_watch_ends_when_the_sign_in_does(call, server, spec):
    server.script = [("RUNNING", {}), 401]
    done = call("submit", spec, "--poll-interval", "0.01")
    assert (done.exit_code, "trying again" in done.stderr) == (2, False)
    assert "give a fresh --token" in done.stderr
    assert "The run goes on" in done.stderr


@pytest.mark.parametrize(
    ("parameter", "parts"),
    [
        ("photos=x", ["has no parameter 'photos'", "there are: breeds, data, dry, min_accuracy, min_slice, run_date"]),
        ("data", ["write --param name=value"]),
        ("min_accuracy=high", ["--param min_accuracy=high: must be a number"]),
        ("min_accuracy=nan", ["must be a number"]),
        ("min_slice=0.5", ["must be a whole number"]),
        ("dry=1", ["must be true or false"]),
        ('breeds={"a": 1}', ["must be a list in JSON"]),
        ('breeds=[{"a": 1, "a": 2}]', ["must be a list in JSON"]),
        (f"data={'x' * 10_000}", ["Kubeflow Pipelines takes 10,000"]),
    ],
)
@pytest.mark.parametrize("command", [["submit"], ["schedule", "--cron", "@daily"]])
def test_a_parameter_that_does_not_fit_is_refused_before_anything_is_sent(
    call, server, spec, command, parameter, parts
):
    assert_refused(call(command[0], spec, *command[1:], "--param", parameter), *parts)
    assert server.requests == []


def test_a_parameter_without_a_default_must_be_given(call, server, tmp_path):
    spec = compiled(tmp_path / "bare.yaml", {"data": {"parameterType": "STRING"}})
    assert_refused(call("submit", spec), "needs a value for data: --param data=...")
    assert call("submit", spec, "--no-wait", "--param", "data=cats").exit_code == 0
    assert only(server.runs)["runtime_config"]["parameters"] == {"data": "cats"}


def test_what_is_no_compiled_pipeline_is_refused(call, tmp_path):
    assert_refused(call("submit", tmp_path / "gone.yaml"), "gone.yaml: no such file", "catbreeds compile")
    (tmp_path / "workflow.yaml").write_text("kind: Workflow")
    assert_refused(call("submit", tmp_path / "workflow.yaml"), "workflow.yaml: not a compiled pipeline")
    twice = tmp_path / "twice.yaml"
    twice.write_text("schemaVersion: 2.1.0\n" + compiled(twice).read_text())
    assert_refused(call("submit", twice), "twice.yaml: not a compiled pipeline", "key 'schemaVersion' is there twice")
    old = compiled(tmp_path / "old.yaml", schema="2.0.0")
    assert_refused(call("submit", old), "schemaVersion 2.0.0, but Kubeflow Pipelines takes 2.1.0")


@pytest.mark.parametrize(
    ("body", "answer", "said"),
    [
        (b'{"multi_user": tr', behave, "answers with damaged JSON, of which 17 characters came"),
        (b'{"multi_user": true}', cut_after(9), "nothing answers at"),
        (b"[1, 2]", behave, "answers with a web page, likely its login, instead of"),
        (b"<html>sign in", behave, "answers with a web page, likely its login, instead of"),
        (b"", behave, "answers with a web page, likely its login, instead of"),
        (b'{"multi_user": "\xff"}', behave, "answers with what is no text"),
        (b"\xff", lambda handler, _: (handler.head(502, 1), handler.wfile.write(b"\xff")), "what is no text"),
    ],
)
def test_an_answer_that_is_cut_or_not_kubeflow_s_is_told(spec, body, answer, said):
    with flaky_server.serving() as server:
        server.files["/apis/v2beta1/healthz"] = body
        server.answers["/apis/v2beta1/healthz"] = [answer] * 9
        done = catbreeds("submit", spec, "--host", server.address)
    assert_refused(done, f"{server.address}", said)


def test_who_stops_watching_is_told_that_the_run_goes_on(server, url, spec):
    server.script = [("RUNNING", {"Tuner": "RUNNING"})]
    command = [CATBREEDS, "submit", spec, "--host", url, "--poll-interval", "0.01"]
    with fork_server.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            while "Tuner" not in watching.stdout.readline():
                assert watching.poll() is None
            watching.send_signal(signal.SIGINT)
            _, errors = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert (watching.returncode, errors.split(":")[1]) == (1, " no longer watching; the run goes on"), errors


# How the server is reached.


def test_without_a_host_it_says_how_to_reach_one(call_by_kubectl, spec):
    done = call_by_kubectl({}, "submit", spec)
    assert_refused(done, "say --host", "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80")


def test_a_host_that_does_not_answer_is_named(call, server, spec):
    with serving(server) as gone:
        pass
    assert_refused(call("submit", spec, "--host", gone), f"nothing answers at {gone}", "kubectl port-forward")
    assert_refused(call("submit", spec, "--host", "localhost:8080"), "write http://localhost:8080")


def test_an_address_copied_from_the_browser_works(call, url, spec):
    assert call("submit", spec, "--no-wait", "--host", f"{url}/#/runs").exit_code == 0


def test_the_ui_may_be_elsewhere(call, spec):
    done = call("submit", spec, "--no-wait", "--ui", "https://cats.example/pipeline/")
    assert ": https://cats.example/pipeline/#/runs/details/" in done.stdout


def test_kubectl_s_configuration_leads_to_the_server(call_by_kubectl, server, url, spec):
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
    done = call_by_kubectl(config, "submit", spec, "--no-wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert "http://localhost:8080/#/runs/details/" in done.stdout
    assert_refused(call_by_kubectl(config, "submit", spec, "--context", "there"), "not in namespace kubeflow", "--host")
    assert_refused(call_by_kubectl(config, "submit", spec, "--context", "nowhere"), "nowhere", "say --host")
    server.token = "renewed"
    assert_refused(call_by_kubectl(config, "submit", spec), "does not know you: sign in to the cluster again (401")


def test_kubectl_s_configuration_that_is_damaged_is_named(call_by_kubectl, spec, tmp_path):
    assert_refused(call_by_kubectl("hello", "submit", spec), f"KUBECONFIG={tmp_path}/kubeconfig: cannot be read")


def test_a_certificate_that_is_not_trusted_is_refused_unless_it_is_named(call, server, spec, tmp_path):
    certificate = tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*making, "-keyout", certificate, "-out", tmp_path / "part"], check=True, capture_output=True)
    with certificate.open("a") as both:
        both.write((tmp_path / "part").read_text())
    with serving(server, certificate) as url:
        assert_refused(call("submit", spec, "--host", url), "no TLS connection", "--ca-cert")
        assert call("submit", spec, "--no-wait", "--host", url, "--ca-cert", certificate).exit_code == 0
        assert_refused(call("submit", spec, "--host", url.replace("https", "http")), url.replace("https", "http"))


def test_a_token_signs_in(call, server, spec):
    server.token = "secret"
    for variables in ({}, {"KF_PIPELINES_TOKEN": "stale"}):
        assert_refused(call("submit", spec, **variables), "does not know you: give a fresh --token", "401")
    assert call("submit", spec, "--no-wait", KF_PIPELINES_TOKEN="secret").exit_code == 0


def test_a_login_page_is_no_answer(call, server, spec):
    server.login = True
    assert_refused(call("submit", spec), "web page, likely its login", "--cookie")


def test_a_server_that_is_too_old_is_told(call, server, spec):
    server.root = "/v1"
    assert_refused(call("submit", spec), "no API of Kubeflow Pipelines 2", "older")


def test_a_server_for_many_users_wants_a_namespace_and_the_right_one(call, server, spec):
    server.namespaces = {"alice"}
    assert_refused(call("submit", spec), "is for many users: say --namespace")
    wrong = call("submit", spec, "--namespace", "bob")
    assert_refused(wrong, "does not let you work in namespace 'bob'", "not authorized")
    assert "at stack" not in wrong.stderr
    assert call("submit", spec, "--no-wait", KF_PIPELINES_NAMESPACE="alice").exit_code == 0
    assert only(server.experiments)["namespace"] == "alice"


def test_a_server_for_one_user_has_no_namespaces(call, spec):
    assert_refused(call("submit", spec, "--namespace", "kubeflow"), "leave --namespace out")


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
def test_five_cron_fields_become_the_six_of_kubeflow(call, server, spec, cron, six):
    done = call("schedule", spec, "--cron", cron, "--param", "data=cats")
    assert (done.exit_code, done.stderr) == (0, "")
    schedule = only(server.schedules)
    assert schedule["trigger"] == {"cron_schedule": {"cron": six}}
    assert (schedule["max_concurrency"], schedule["no_catchup"], schedule["status"]) == ("1", True, "ENABLED")
    assert schedule["runtime_config"]["parameters"] == {"data": "cats", "run_date": "[[ScheduledTime]]"}
    start, shown = datetime.datetime.now(datetime.UTC), done.stdout.splitlines()[-1]
    assert shown.startswith("Next times, in UTC unless the server is set otherwise: ")
    assert f"{croniter(cron, start).get_next(datetime.datetime):%a %Y-%m-%d %H:%M}" in shown


@pytest.mark.parametrize(
    ("cron", "parts"),
    [
        ("0 0 3 * * 1", ["6 fields; write five: minute, hour, day of the month, month, day of the week", "seconds"]),
        ("daily", ["1 fields; write five"]),
        ("", ["0 fields; write five"]),
        ("61 * * * *", ["out of range"]),
        ("0 3 30 2 *", ["the five fields are"]),
        ("0 3 l * *", ["does not know 'l'"]),
        ("0 3 * * mon#2", ["does not know '#'"]),
        ("r 3 * * *", ["does not know 'r'"]),
        ("@reboot", ["@reboot"]),
    ],
)
def test_what_is_no_cron_of_five_fields_is_refused_in_words(call, server, spec, cron, parts):
    assert_refused(call("schedule", spec, "--cron", cron), *parts)
    assert server.requests == []


def test_a_schedule_is_replaced_paused_resumed_listed_and_deleted(call, server, spec):
    assert call("schedule", spec, "--cron", "0 3 * * 1").exit_code == 0
    assert call("schedule", spec, "--cron", "30 4 * * *").exit_code == 0
    assert only(server.schedules)["trigger"]["cron_schedule"]["cron"] == "0 30 4 * * *"
    assert call("schedule", spec, "--pause").exit_code == 0
    assert server.active() == []
    shown = call("schedule", spec, "--list").stdout
    assert "catbreeds  paused  '30 4 * * *', next " in shown
    assert "run_date=[[ScheduledTime]]" in shown
    resumed = call("schedule", spec, "--resume")
    assert resumed.exit_code == 0
    assert "one run starts now, for the latest time" in resumed.stdout
    assert server.active() == [only(server.schedules)]
    assert "catbreeds  active" in call("schedule", spec, "--list").stdout
    assert call("schedule", spec, "--cron", "@daily", "--pause").exit_code == 0
    assert (only(server.schedules)["status"], server.most_active) == ("DISABLED", 1)
    assert call("schedule", spec, "--delete").exit_code == 0
    assert server.schedules == {}
    assert "No schedule in experiment catbreeds" in call("schedule", spec, "--list").stdout
    assert_refused(call("schedule", spec, "--pause"), "there is no schedule 'catbreeds'")


def test_a_schedule_that_others_made_is_left_alone(call, server, spec):
    call("schedule", spec, "--cron", "@daily")
    server.give_away_schedules("by hand", "@every 1h")
    assert call("schedule", spec, "--cron", "@weekly").exit_code == 0
    assert sorted(schedule["display_name"] for schedule in server.active()) == ["by hand", "catbreeds"]
    assert "by hand  active  '@every 1h', next unknown" in call("schedule", spec, "--list").stdout
    assert call("schedule", spec, "--delete").exit_code == 0
    assert only(server.schedules)["display_name"] == "by hand"


def test_an_update_that_is_interrupted_anywhere_never_leaves_two_active_and_ends_in_one_when_run_again(
    call, server, spec
):
    server.page = 1
    update = ("schedule", spec, "--cron", "@weekly")
    assert call("schedule", spec, "--cron", "@daily").exit_code == 0
    before = server.changes
    assert call(*update).exit_code == 0
    steps = server.changes - before
    assert steps == 3  # make, delete the old one, enable
    for done in range(steps):
        server.changes_left = done
        broken = call(*update)
        assert (broken.exit_code, len(server.active()) <= 1) == (2, True), broken.stderr
        if len(server.schedules) > 1:
            assert_refused(call("schedule", spec, "--resume"), "an update was interrupted; --cron leaves one")
        server.changes_left = None
        assert call(*update).exit_code == 0
        assert server.active() == [only(server.schedules)]
    assert server.most_active == 1


def test_an_experiment_that_is_not_there_is_named_and_an_archived_one_is_not_used(call, server, spec):
    assert_refused(call("schedule", spec, "--list"), "there is no experiment 'catbreeds'; there are: none")
    call("submit", spec, "--no-wait")
    done = call("schedule", spec, "--pause", "--experiment", "cats")
    assert_refused(done, "there is no experiment 'cats'; there are: 'catbreeds'")
    only(server.experiments)["storage_state"] = "ARCHIVED"
    done = call("submit", spec, "--no-wait")
    assert done.exit_code == 2
    assert "experiment 'catbreeds' is archived: restore it in the UI" in done.stderr


@pytest.mark.parametrize(
    "options",
    [[], ["--pause", "--resume"], ["--list", "--cron", "@daily"], ["--delete", "--param", "data=x"]],
)
def test_a_schedule_does_one_thing_at_a_time(call, server, spec, options):
    assert call("schedule", spec, *options).exit_code == 2
    assert server.requests == []


# What people read.


def test_help_comes_without_the_client():
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


def test_the_commands_and_manifests_of_the_page_are_right():
    page = (ROOT / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    catbreeds ")]
    assert {command[0] for command in commands} >= {"submit", "schedule", "compile", "sample-data"}
    for name, *arguments in commands:
        typer.main.get_command(app).commands[name].make_context(name, arguments)
    (manifest,) = re.findall(r"kubectl apply -f - <<END\n(.*?)\n    END", page, re.DOTALL)
    for document in yaml.safe_load_all(textwrap.dedent(manifest)):
        kubernetes_validate.validate(document, "1.31", strict=True)
