"""A fake Kubeflow Pipelines server, in the process of the tests.

It stores pipelines, versions, experiments, runs and schedules. It accepts only requests that match the official models,
and rejects what the real server rejects. It executes nothing; tests set the states of a run.
"""

import base64
import contextlib
import email
import email.policy
import gzip
import http.server
import json
import re
import ssl
import threading
import types
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

NOW = "2026-11-23T03:00:00Z"
_API = "/apis/v2beta1"
_MODELS = kfp_server_api.ApiClient()


class ErrorResponse(Exception):
    """An error response with an HTTP status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes

    def model(self, name: str) -> dict:
        """Return the body if it matches the official model exactly."""
        body = json.loads(self.body)
        parsed = _MODELS.deserialize(types.SimpleNamespace(data=self.body), name)
        if _MODELS.sanitize_for_serialization(parsed) != body:
            raise ErrorResponse(400, f"not a {name}: {body}")
        return body

    def file(self) -> bytes:
        """Return the uploaded file."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = email.message_from_bytes(head + self.body, policy=email.policy.HTTP).iter_parts()
        assert part.get_param("name", header="Content-Disposition") == "uploadfile"
        return part.get_payload(decode=True)


class KubeflowServer:
    """State and behavior of the server.

    Attributes:
        namespaces: Namespaces that the user may use; empty for a single-user server.
        token: Required bearer token, if any.
        script: Responses to consecutive requests for a run: (state, {task: state}), or an HTTP status. The last one is
            repeated.
        node_bytes: Size of the status of a node in Argo's Workflow. If all nodes together have more than 1 MiB, Argo
            compresses them, and the tasks of a run are no longer updated.
        invalid: Reason why Argo does not start the Workflow, if any.
        ended: Reason why Argo ends the Workflow although no task fails, if any.
        default_retries: Whether Argo retries every node, as in the default installation of 2.17.
        messages: Node -> Argo's reason for its failure.
        podless: Tasks that end before they have a pod.
        upload_error: Reason for rejecting every upload, if any.
        v1beta1: Whether the server has the API v1beta1, which returns the Workflow of a run.
        login: Whether every response is a login page.
        root: Path of the API below the address; usually "".
        changes_left: Number of changes that succeed before every connection breaks; None: unlimited.
        page: Maximum number of items per page.
    """

    def __init__(self):
        self.namespaces: set[str] = set()
        self.token: str | None = None
        self.script: list = [("SUCCEEDED", {})]
        self.node_bytes = 1000
        self.default_retries = False
        self.invalid = self.ended = ""
        self.messages: dict[str, str] = {}
        self.podless: set[str] = set()
        self.upload_error = ""
        self.v1beta1 = True
        self.login = False
        self.root = ""
        self.changes_left: int | None = None
        self.page = 100
        self.pipelines: dict[str, dict] = {}
        self.versions: dict[str, dict] = {}
        self.experiments: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self.schedules: dict[str, dict] = {}
        self.max_active = 0  # maximum number of schedules with the same name that were active at the same time
        self.requests: list[str] = []

    @property
    def changes(self) -> int:
        return sum(not request.startswith("GET") for request in self.requests)

    def respond(self, method: str, path: str, request: Request) -> dict:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise ErrorResponse(401, "Unauthenticated: Request header error: there is no user identity header.")
        run = re.fullmatch(rf"{self.root}/apis/v1beta1/runs/([^/]+)", path)
        if run and self.v1beta1:
            self.requests.append(f"{method} {path.removeprefix(self.root)}")
            return self.get_run_v1beta1(run[1])
        if not path.startswith(self.root + _API):
            raise ErrorResponse(404, "Not Found")
        path = path.removeprefix(self.root + _API)
        self.requests.append(f"{method} {path}")
        for route_method, pattern, handler in _ROUTES:
            match = route_method == method and re.fullmatch(pattern, path)
            if match:
                return handler(self, request, *match.groups())
        raise ErrorResponse(404, "Not Found")

    def healthz(self, _: Request) -> dict:
        return {"multi_user": bool(self.namespaces)}

    def create_pipeline(self, request: Request) -> dict:
        body = request.model("V2beta1Pipeline")
        self._authorize(body)
        if any(p["display_name"] == body["display_name"] for p in self.pipelines.values()):
            raise ErrorResponse(409, f"The name {body['display_name']} already exist. Please specify a new name.")
        return _store(self.pipelines, "pipeline_id", body)

    def list_pipelines(self, request: Request) -> dict:
        self._authorize(request.query)
        return self._list("pipelines", self.pipelines, request.query)

    def upload_version(self, request: Request) -> dict:
        name, pipeline_id = request.query["name"], request.query["pipelineid"]
        if self.upload_error:
            raise ErrorResponse(400, self.upload_error)
        documents = list(yaml.safe_load_all(request.file()))
        spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for platform in documents[1:]:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        if spec.schema_version != "2.1.0":
            raise ErrorResponse(400, f"unsupported schema version {spec.schema_version}")
        if any(v["name"] == name for v in self.versions.values()):
            raise ErrorResponse(409, f"version {name} already exists")
        _get(self.pipelines, pipeline_id)
        version = {"pipeline_id": pipeline_id, "display_name": name, "name": name, "pipeline_spec": documents[0]}
        return _store(self.versions, "pipeline_version_id", version)

    def list_versions(self, request: Request, pipeline_id: str) -> dict:
        _get(self.pipelines, pipeline_id)
        versions = {key: v for key, v in self.versions.items() if v["pipeline_id"] == pipeline_id}
        return self._list("pipeline_versions", versions, request.query)

    def create_experiment(self, request: Request) -> dict:
        body = request.model("V2beta1Experiment")
        self._authorize(body)
        return _store(self.experiments, "experiment_id", {**body, "storage_state": "AVAILABLE"})

    def list_experiments(self, request: Request) -> dict:
        self._authorize(request.query)
        return self._list("experiments", self.experiments, request.query)

    def create_run(self, request: Request) -> dict:
        body = request.model("V2beta1Run")
        self._check_runnable(body)
        return _store(self.runs, "run_id", {**body, "state": "PENDING"})

    def get_run(self, _: Request, run_id: str) -> dict:
        run = _get(self.runs, run_id)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, int):
            raise ErrorResponse(step, "upstream connect error")
        state, tasks = step
        workflow = _workflow(tasks, self.messages, self.podless, self.node_bytes, self.default_retries)
        if self.invalid:
            workflow["status"] = {"phase": "Failed", "message": self.invalid}
        elif self.ended:
            workflow["status"]["message"] = self.ended
        run.update(state=state, workflow=json.dumps(workflow))
        if "nodes" in workflow["status"]:
            run["tasks"] = [_task(node) for node in workflow["status"]["nodes"].values()]
        shown = {key: value for key, value in run.items() if key not in ("workflow", "tasks")}
        return {**shown, "run_details": {"task_details": run.get("tasks", [])}}

    def get_run_v1beta1(self, run_id: str) -> dict:
        run = _get(self.runs, run_id)
        return {"run": {"id": run_id}, "pipeline_runtime": {"workflow_manifest": run["workflow"]}}

    def create_schedule(self, request: Request) -> dict:
        body = request.model("V2beta1RecurringRun")
        self._check_runnable(body)
        cron = body["trigger"]["cron_schedule"]["cron"]
        field = r"\*|\d+(,\d+)*"
        if not re.fullmatch(rf"(({field}) ){{5}}({field})", cron) or not cron.startswith("0 "):
            raise ErrorResponse(400, f"Schedule cron is not a supported format: {cron}")
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise ErrorResponse(400, "The max concurrency of the recurring run is out of range")
        schedule = _store(self.schedules, "recurring_run_id", body)
        self._set_mode(schedule, body["mode"])
        return schedule

    def list_schedules(self, request: Request) -> dict:
        schedules = {k: s for k, s in self.schedules.items() if s["experiment_id"] == request.query["experiment_id"]}
        return self._list("recurringRuns", schedules, request.query)

    def enable_schedule(self, _: Request, schedule_id: str) -> dict:
        self._set_mode(_get(self.schedules, schedule_id), "ENABLE")
        return {}

    def disable_schedule(self, _: Request, schedule_id: str) -> dict:
        self._set_mode(_get(self.schedules, schedule_id), "DISABLE")
        return {}

    def delete_schedule(self, _: Request, schedule_id: str) -> dict:
        _get(self.schedules, schedule_id)
        del self.schedules[schedule_id]
        return {}

    def transfer_schedules(self, name: str, cron: str) -> None:
        """Change all schedules to ones that another user created in the UI."""
        for schedule in self.schedules.values():
            schedule.update(display_name=name, trigger={"cron_schedule": {"cron": cron}})

    def active(self) -> list[dict]:
        """Return the schedules that are enabled."""
        return [schedule for schedule in self.schedules.values() if schedule["status"] == "ENABLED"]

    def _set_mode(self, schedule: dict, mode: str) -> None:
        schedule.update(mode=mode, status=f"{mode}D")
        names = [active["display_name"] for active in self.active()]
        self.max_active = max([self.max_active, *map(names.count, names)])

    def _authorize(self, request: dict) -> None:
        namespace = request.get("namespace")
        if namespace and not self.namespaces:
            raise ErrorResponse(400, "In single-user mode, the namespace must be empty")
        if self.namespaces and not namespace:
            raise ErrorResponse(400, "Invalid input error: namespace is empty")
        if self.namespaces and namespace not in self.namespaces:
            raise ErrorResponse(
                403, "User 'alice@example.com' is not authorized with reason:  (request: &{...})\n at stack"
            )

    def _check_runnable(self, body: dict) -> None:
        if _get(self.experiments, body["experiment_id"])["storage_state"] == "ARCHIVED":
            raise ErrorResponse(400, "The experiment is archived")
        reference = body["pipeline_version_reference"]
        version = _get(self.versions, reference["pipeline_version_id"])
        assert version["pipeline_id"] == reference["pipeline_id"]
        known = version["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        kinds = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "LIST": list}
        for name, value in body["runtime_config"].get("parameters", {}).items():
            if type(value) is not kinds[known[name]["parameterType"]]:
                raise ErrorResponse(400, f"input parameter {name} requires type {known[name]['parameterType']}")

    def _list(self, field: str, items: dict[str, dict], query: dict[str, str]) -> dict:
        selected = list(items.values())
        for predicate in json.loads(_unescaped(query.get("filter") or "{}")).get("predicates", ()):
            assert predicate["operation"] == "EQUALS", predicate
            selected = [item for item in selected if item[predicate["key"]] == predicate["stringValue"]]
        start = int(query.get("page_token") or 0)
        end = start + min(self.page, int(query["page_size"]))
        return {field: selected[start:end], "next_page_token": str(end) if end < len(selected) else ""}


_ROUTES = (
    ("GET", "/healthz", KubeflowServer.healthz),
    ("GET", "/pipelines", KubeflowServer.list_pipelines),
    ("POST", "/pipelines", KubeflowServer.create_pipeline),
    ("POST", "/pipelines/upload_version", KubeflowServer.upload_version),
    ("GET", "/pipelines/([^/]+)/versions", KubeflowServer.list_versions),
    ("GET", "/experiments", KubeflowServer.list_experiments),
    ("POST", "/experiments", KubeflowServer.create_experiment),
    ("POST", "/runs", KubeflowServer.create_run),
    ("GET", "/runs/([^/]+)", KubeflowServer.get_run),
    ("GET", "/recurringruns", KubeflowServer.list_schedules),
    ("POST", "/recurringruns", KubeflowServer.create_schedule),
    ("DELETE", "/recurringruns/([^/:]+)", KubeflowServer.delete_schedule),
    ("POST", "/recurringruns/([^/:]+):enable", KubeflowServer.enable_schedule),
    ("POST", "/recurringruns/([^/:]+):disable", KubeflowServer.disable_schedule),
)


@contextlib.contextmanager
def serving(server: KubeflowServer, certificate: Path | None = None) -> Iterator[str]:
    """Serve `server` and yield its address, which is https if `certificate`, a file with its key, is given."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if server.login:
                return self._send(200, "text/html", b"<!DOCTYPE html><title>Log in to Your Account</title>")
            if self.command != "GET" and server.changes_left is not None:
                if server.changes_left == 0:
                    return self.connection.close()
                server.changes_left -= 1
            try:
                status, document = 200, server.respond(self.command, url.path, Request(query, self.headers, body))
            except ErrorResponse as error:
                status, document = error.status, {"error": str(error), "code": 3, "message": str(error)}
                if "upload" in url.path:  # the upload handler of the real server has another error format
                    document = {"error_message": str(error), "error_details": f"{error}\nat stack"}
            return self._send(status, "application/json", json.dumps(document).encode())

        do_POST = do_DELETE = do_GET

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


def _get(items: dict[str, dict], key: str) -> dict:
    if key not in items:
        raise ErrorResponse(404, f"{key} not found")
    return items[key]


def _unescaped(text: str) -> str:
    """Unescape like Go's url.QueryUnescape, which the server applies to filters that are already unescaped."""
    if re.search("%(?![0-9a-fA-F]{2})", text):
        raise ErrorResponse(400, f"failed to parse valid filter from {text}: invalid URL escape")
    return urllib.parse.unquote_plus(text)


def _store(items: dict[str, dict], key: str, item: dict) -> dict:
    identity = str(uuid.uuid4())
    items[identity] = {key: identity, "created_at": NOW, **item}
    return items[identity]


def _workflow(
    tasks: dict[str, str], messages: dict[str, str], podless: set[str], node_bytes: int, default_retries: bool
) -> dict:
    """Return Argo's Workflow of a run, with four nodes per task: driver, task, executor and the executor's pod."""
    name = "catbreeds-x7k2p"
    states = {"root": "RUNNING", "root-driver": "SUCCEEDED"}
    for task, state in tasks.items():
        states[f"root.{task}"] = state
        if task.endswith("-driver"):
            continue
        states.setdefault(f"root.{task}-driver", "OMITTED" if state == "OMITTED" else "SUCCEEDED")
        if state not in ("SKIPPED", "OMITTED", "PENDING") and task not in podless:
            states[f"root.{task}.executor"] = states[f"root.{task}.executor(0)"] = state
    if default_retries:
        several = {re.sub(r"(?<!\))(?=\.)", "(0)", path): state for path, state in states.items()}
        ran = {
            path: state for path, state in several.items() if state not in ("SKIPPED", "OMITTED") and path[-1] != ")"
        }
        states = several | {f"{path}(0)": state for path, state in ran.items()}
    nodes = {}
    for number, (path, state) in enumerate(states.items()):
        display, driver = path.split(".")[-1], "-driver" in path
        pod = display.endswith("(0)") and (driver or "executor" in display) if default_retries or not driver else True
        identity = f"{name}-{1000 + number}"
        nodes[identity] = {
            "id": identity,
            "name": f"{name}{'(0)' if default_retries else ''}.{path}",
            "displayName": display,
            "type": "Pod" if pod and state != "OMITTED" else "Retry" if display == "executor" else "DAG",
            "templateName": "system-container-driver" if driver else "retry-system-container-impl",
            "phase": state.capitalize(),
            "startedAt": NOW,
            "finishedAt": NOW if state in ("SUCCEEDED", "FAILED", "SKIPPED", "OMITTED") else None,
            "inputs": {"parameters": [{"name": "pod-spec-patch", "value": "x" * node_bytes}]},
            **(
                {"message": messages.get(display) or messages[display.removesuffix("(0)")]}
                if display.removesuffix("(0)") in messages or display in messages
                else {}
            ),
        }
    status: dict = {"phase": "Running"}
    text = json.dumps(nodes)
    if len(text) > 2**20:
        status["compressedNodes"] = base64.b64encode(gzip.compress(text.encode())).decode()
    else:
        status["nodes"] = nodes
    return {"metadata": {"name": name, "namespace": "cats"}, "status": status}


def _task(node: dict) -> dict:
    """Return a node as the server reports it: an omitted task has no state, and failures have no reason."""
    state = {} if node["phase"] == "Omitted" else {"state": node["phase"].upper()}
    times = {"create_time": NOW, "start_time": NOW, "end_time": node["finishedAt"] or "0001-01-01T00:00:00Z"}
    return {"display_name": node["displayName"], **state, **times, "child_tasks": [{"pod_name": node["id"]}]}
