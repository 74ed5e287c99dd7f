"""Runs a compiled specification on one machine as the backend of Kubeflow Pipelines 2.15 to 2.17 would.

It copies what the API server, the driver and the launcher do to a specification and to the files of its tasks, so that
what they would refuse, rewrite or lose is refused, rewritten or lost here. Each task is a process of its own, started
from the specification's command; object store and pods are folders.

What it does not prove: that the image can be built and pulled, holds what the tasks need and may write where they do;
that requests for CPU, memory, GPUs, volumes and secrets can be met, and that a task lives within them; that the API
server's and Argo's own validation has nothing more to say; object stores, permissions, timeouts, network.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from tests import fork_server

ROOT = Path(__file__).parents[4]
PIPELINE_ROOT = "minio://mlpipeline/v2/artifacts"
_FOLDERS = {"minio": "minio", "s3": "s3", "gs": "gcs"}
_TASK_NAME = re.compile("[A-Za-z][A-Za-z0-9-]*")
_PIPELINE_NAME = re.compile("[a-z0-9][a-z0-9-]{0,127}")
_MOST_PARAMETERS = 10_000  # bytes, of all parameters of a run together
_LONGEST_ARGUMENT = 128 * 1024
_LARGEST_WORKFLOW = 1_500_000
# Above this Argo compresses the status of a Workflow's nodes, and the API server no longer reads it.
LARGEST_NODE_STATUS = 2**20
_CONDITION = re.compile(
    r"\(inputs\.artifacts\['(?P<key>[^']+)'\]\.artifacts\[0\]\.metadata\['(?P<name>[^']+)'\] == (?P<value>-?[0-9.]+)\)"
)
_PYTHON_TYPES = {
    "STRING": str,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


class Rejected(Exception):
    """The server would not take the specification, or the run's parameters."""


class TaskFailed(Exception):
    """A task failed; the message holds the end of its log."""


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact as the metadata store has it.

    Attributes:
        name: its id there, a number in a string.
        type: title of its schema.
        uri: in the object store.
        properties: custom properties, as the store keeps them.
        content: its file or folder in the object store.
    """

    name: str
    type: str
    uri: str
    properties: dict[str, Any]
    content: Path

    def text(self) -> str:
        return self.content.read_text(encoding="utf-8")


@dataclass
class Run:
    """What became of a run.

    Attributes:
        id: of the run.
        scheduled: time of the schedule, or when it was created, as 2026-11-29T03:00:00Z.
        states: task -> SUCCEEDED, CACHED, SKIPPED (its condition was false), OMITTED (rests on one that was).
        artifacts: task -> output key -> artifact.
        inputs: task -> the ExecutorInput it was given, in JSON.
        warnings: of the launcher.
    """

    id: str
    scheduled: str = "2026-11-28T10:00:00Z"
    states: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, dict[str, StoredArtifact]] = field(default_factory=dict)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def tasks(self, state: str) -> set[str]:
        return {task for task, found in self.states.items() if found == state}


def load(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline and platform specification of a file, checked as the server checks them.

    Raises:
        Rejected: the server, or the compiler to Argo behind it, would not take them.
    """
    spec, *platforms = yaml.safe_load_all(text)
    platform = platforms[0] if platforms else {}
    try:
        json_format.ParseDict(spec, pb.PipelineSpec())
        json_format.ParseDict(spec["deploymentSpec"], pb.PipelineDeploymentConfig())
    except json_format.ParseError as error:
        raise Rejected(f"not a pipeline specification: {error}") from None
    _require(spec["schemaVersion"] == "2.1.0", f"schemaVersion {spec['schemaVersion']}")
    _require(_PIPELINE_NAME.fullmatch(spec["pipelineInfo"]["name"]), f"pipeline name {spec['pipelineInfo']['name']}")
    _require(len(json.dumps(spec)) < _LARGEST_WORKFLOW, "the workflow is too large for the cluster's store")
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    tasks = spec["root"]["dag"]["tasks"]
    for name, task in tasks.items():
        _check_task(spec, declared, tasks, name, task)
    _order(tasks)
    labels = {component["executorLabel"] for component in spec["components"].values()}
    _require(labels >= spec["deploymentSpec"]["executors"].keys(), "an executor without a component")
    for kubernetes in platform.get("platforms", {}).values():
        configured = kubernetes["deploymentSpec"]["executors"]
        _require(
            labels >= configured.keys(), f"platform specification of unknown executors {configured.keys() - labels}"
        )
    return spec, platform


def _check_task(spec: dict, declared: dict, tasks: dict, name: str, task: dict) -> None:
    _require(_TASK_NAME.fullmatch(name), f"Argo takes no task by the name {name}")
    _require(name == task["taskInfo"]["name"], f"{name}: another name in taskInfo")
    component = spec["components"].get(task["componentRef"]["name"])
    _require(component, f"{name}: no such component")
    executor = spec["deploymentSpec"]["executors"].get(component["executorLabel"])
    _require(executor, f"{name}: no such executor")
    _require("resolver" not in executor, f"{name}: resolver not implemented yet")
    container = executor["container"]
    _require("lifecycle" not in container, f"{name}: the backend never runs lifecycle hooks")
    _require(container.get("image") and container.get("command"), f"{name}: no image or command")
    wanted = component.get("inputDefinitions", {})
    given = task.get("inputs", {})
    for key, artifact in given.get("artifacts", {}).items():
        _require(key in wanted.get("artifacts", {}), f"{name}: {key} is no input of its component")
        source = artifact["taskOutputArtifact"]
        _require(source["producerTask"] in tasks, f"{name}: {key}: no task {source['producerTask']}")
        producer = spec["components"][tasks[source["producerTask"]]["componentRef"]["name"]]
        outputs = producer["outputDefinitions"]["artifacts"]
        _require(source["outputArtifactKey"] in outputs, f"{name}: {key}: no such output of {source['producerTask']}")
    missing = wanted.get("artifacts", {}).keys() - given.get("artifacts", {}).keys()
    _require(not missing, f"{name}: nothing for its inputs {missing}")
    for key, value in given.get("parameters", {}).items():
        _require(key in wanted.get("parameters", {}), f"{name}: {key} is no parameter of its component")
        if "componentInputParameter" in value:
            _require(value["componentInputParameter"] in declared, f"{name}: {key}: no such parameter of the pipeline")
    missing = {
        key
        for key, parameter in wanted.get("parameters", {}).items()
        if key not in given.get("parameters", {})
        and "defaultValue" not in parameter
        and not parameter.get("isOptional")
    }
    _require(not missing, f"{name}: nothing for its parameters {missing}")
    for dependency in task.get("dependentTasks", []):
        _require(dependency in tasks, f"{name}: depends on {dependency}, which is no task")
    condition = task.get("triggerPolicy", {}).get("condition", "")
    if condition:
        match = _CONDITION.fullmatch(condition)
        _require(match, f"{name}: this executor does not understand the condition {condition}")
        _require(match["key"] in given.get("artifacts", {}), f"{name}: its condition asks for {match['key']}")


def _order(tasks: dict[str, Any]) -> list[str]:
    """The tasks, each after those it rests on."""
    order: list[str] = []
    while len(order) < len(tasks):
        ready = [name for name in tasks if name not in order and _upstream(tasks[name]) <= set(order)]
        _require(ready, f"a cycle among {tasks.keys() - set(order)}")
        order += ready
    return order


def _upstream(task: dict[str, Any]) -> set[str]:
    """The tasks that must have succeeded: those that are named, and those whose outputs are read."""
    artifacts = task.get("inputs", {}).get("artifacts", {}).values()
    return {*task.get("dependentTasks", []), *(found["taskOutputArtifact"]["producerTask"] for found in artifacts)}


def _require(condition: object, message: str) -> None:
    if not condition:
        raise Rejected(message)


class Backend:
    """A cluster in a folder: object store, metadata store, cache.

    Args:
        folder: where it keeps its files.
        workers: tasks that run at a time.
        whole_folders: a download takes what is below the artifact's URI; False: whatever begins with it, as in 2.15.
        retry_policy: of Argo. With OnError, which the default installation of 2.17 sets, a task that exits with an
            error is not retried.
    """

    def __init__(self, folder: Path, workers: int = 2, *, whole_folders: bool = True, retry_policy: str = "OnFailure"):
        self._folder, self._workers = folder, workers
        self._whole_folders, self._retry_policy = whole_folders, retry_policy
        self._bucket = folder / "bucket"
        self._cache: dict[str, dict[str, StoredArtifact]] = {}
        self._artifacts = 0
        self._lock = threading.Lock()

    def run(self, text: str, parameters: dict[str, Any], scheduled: str | None = None) -> Run:
        """Runs a specification to its end.

        Args:
            text: of the specification.
            parameters: of the run.
            scheduled: time of the schedule that starts it; None: somebody does.

        Raises:
            Rejected: the server would not take it, or the parameters.
            TaskFailed: a task failed.
        """
        spec, platform = load(text)
        values = _runtime_parameters(spec, parameters)
        run = Run(str(uuid.uuid4()), **({"scheduled": scheduled} if scheduled else {}))
        tasks = spec["root"]["dag"]["tasks"]
        todo, running = _order(tasks), {}
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            while todo or running:
                for name in [name for name in todo if _upstream(tasks[name]) <= run.states.keys()]:
                    todo.remove(name)
                    if any(run.states[task] in ("SKIPPED", "OMITTED") for task in _upstream(tasks[name])):
                        run.states[name] = "OMITTED"  # Argo's condition is that each has succeeded
                    else:
                        running[pool.submit(self._task, spec, platform, values, run, name)] = name
                finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    try:
                        run.states[name], run.artifacts[name] = future.result()
                    except BaseException:
                        todo.clear()
                        raise
        return run

    def _task(
        self, spec: dict, platform: dict, values: dict, run: Run, name: str
    ) -> tuple[str, dict[str, StoredArtifact]]:
        """Driver, then launcher, which Argo retries."""
        task = spec["root"]["dag"]["tasks"][name]
        component = spec["components"][task["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        inputs = {"parameterValues": _task_parameters(task, component, values, run), "artifacts": {}}
        for key, source in task.get("inputs", {}).get("artifacts", {}).items():
            origin = source["taskOutputArtifact"]
            artifact = run.artifacts[origin["producerTask"]][origin["outputArtifactKey"]]
            inputs["artifacts"][key] = {"artifacts": [_runtime_artifact(artifact)]}
        condition = task.get("triggerPolicy", {}).get("condition", "")
        if condition and not _holds(condition, inputs["artifacts"]):
            return "SKIPPED", {}
        declared = component.get("outputDefinitions", {}).get("artifacts", {})
        caching = task.get("cachingOptions", {}).get("enableCache")
        cache_key = _cache_key(inputs, declared, container, _claims(platform, component["executorLabel"]))
        if caching and cache_key in self._cache:
            return "CACHED", self._cache[cache_key]
        base = f"{PIPELINE_ROOT}/pipeline/{spec['pipelineInfo']['name']}/{run.id}"
        folder = f"{base}/{name}/{uuid.uuid4()}"
        attempts = 1 + self._retries(task)
        for attempt in range(attempts):
            pod = self._folder / "pods" / f"{name}-{uuid.uuid4().hex[:8]}"
            invocation = {"inputs": inputs, "outputs": _outputs(declared, folder, attempt)}
            # The path of the output file is one in the pod.
            invocation["outputs"]["outputFile"] = str(_local(pod, f"{folder}/output_metadata.json"))
            run.inputs[name] = invocation
            self._download(pod, inputs["artifacts"])
            _prepare(pod, invocation["outputs"])
            try:
                _execute(pod, container, invocation, name)
                break
            except TaskFailed:
                if attempt + 1 == attempts:
                    raise
        found = self._upload(pod, base, name, invocation["outputs"], run)
        shutil.rmtree(pod)
        if caching:
            self._cache[cache_key] = found
        return "SUCCEEDED", found

    def _retries(self, task: dict[str, Any]) -> int:
        """How often Argo starts a task anew that exits with an error."""
        policy = task.get("retryPolicy", {})
        # Without a maximum, the server gives Argo a maximum of 0 seconds.
        within = float(policy.get("backoffMaxDuration", "0s").removesuffix("s")) > 0
        return policy.get("maxRetryCount", 0) if within and self._retry_policy != "OnError" else 0

    def _download(self, pod: Path, artifacts: dict[str, Any]) -> None:
        """The object at each artifact's URI, and those below it; before 2.17 each one whose key begins with it."""
        for found in artifacts.values():
            uri = found["artifacts"][0]["uri"]
            source, target = self._object(uri), _local(pod, uri)
            for path in [source] if self._whole_folders else source.parent.glob(f"{source.name}*"):
                for file in [path] if path.is_file() else path.rglob("*"):
                    if file.is_file():
                        place = Path(os.path.normpath(target / os.path.relpath(file, source)))
                        place.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, place)

    def _upload(self, pod: Path, base: str, name: str, outputs: dict[str, Any], run: Run) -> dict[str, StoredArtifact]:
        written = _read_output(Path(outputs["outputFile"]), name)
        stored = {}
        for key, found in outputs["artifacts"].items():
            artifact = found["artifacts"][0]
            reported = written.get("artifacts", {}).get(key, {}).get("artifacts", [{}])[0]
            uri = reported.get("uri") or artifact["uri"]
            metadata = artifact.get("metadata", {}) | reported.get("metadata", {})
            if uri.partition("://")[0] in _FOLDERS and not uri.startswith(f"{base}/"):
                raise TaskFailed(f"{name}: {key} is at {uri}: outside of the run")
            source, target = _local(pod, uri), self._object(uri)
            if not source.exists():
                run.warnings.append(f"{name}: output {key} is not at {uri}: nothing is uploaded")
            files = [source] if source.is_file() else [path for path in source.rglob("*") if not path.is_dir()]
            if any(path.is_symlink() and path.is_dir() for path in source.rglob("*")):
                raise TaskFailed(f"{name}: {key} holds a link to a directory")
            for file in files:  # empty directories get lost
                place = target if file == source else target / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
            if key != "executor-logs":
                properties = {k: _stored(v, f"{name}: {key}: {k}") for k, v in metadata.items()}
                title = yaml.safe_load(artifact["type"]["instanceSchema"])["title"]
                stored[key] = StoredArtifact(self._next_id(), title, uri, properties, target)
        return stored

    def _object(self, uri: str) -> Path:
        return self._bucket / uri.partition("://")[2]

    def _next_id(self) -> str:
        with self._lock:
            self._artifacts += 1
            return str(self._artifacts)


def _runtime_parameters(spec: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    _require(declared.keys() >= given.keys(), f"unknown parameters: {given.keys() - declared.keys()}")
    values = {}
    for name, parameter in declared.items():
        if name in given:
            values[name] = given[name]
        elif "defaultValue" in parameter:
            values[name] = parameter["defaultValue"]
        else:
            _require(parameter.get("isOptional"), f"parameter {name} is not given and has no default")
            values[name] = None
            continue
        _require(_fits(values[name], parameter["parameterType"]), _no(name, values[name], parameter["parameterType"]))
    size = len(json.dumps(values).encode())
    _require(size < _MOST_PARAMETERS, f"the parameters take {size} bytes, more than {_MOST_PARAMETERS}")
    return values


def _fits(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON_TYPES[kind]) and not (isinstance(value, bool) and kind != "BOOLEAN")


def _no(name: str, value: Any, kind: str) -> str:
    return f"parameter {name}: {value!r} is no {kind}"


def _task_parameters(task: dict, component: dict, values: dict[str, Any], run: Run) -> dict[str, Any]:
    known = {"{{$.pipeline_job_uuid}}": run.id, "{{$.pipeline_job_schedule_time_utc}}": run.scheduled}
    definitions = component.get("inputDefinitions", {}).get("parameters", {})
    found = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source:
            value = values[source["componentInputParameter"]]
            if value is None:
                if definitions[name].get("isOptional"):
                    continue
                raise TaskFailed(f"the resolved input parameter is null: {name}")
        else:
            value = source["runtimeValue"]["constant"]
            value = known.get(value, value) if isinstance(value, str) else value
        kind = definitions[name]["parameterType"]
        # Between tasks the driver turns what is given for a text into one.
        value = json.dumps(value) if kind == "STRING" and not isinstance(value, str) else value
        if not _fits(value, kind):
            raise TaskFailed(_no(name, value, kind))
        found[name] = value
    return found


def _outputs(declared: dict[str, Any], folder: str, attempt: int) -> dict[str, Any]:
    """The outputs of an ExecutorInput, with the log that the backend adds; the launcher numbers it by the attempt."""
    kinds = {key: value["artifactType"] for key, value in declared.items()}
    kinds["executor-logs"] = {"schemaTitle": "system.Artifact"}
    suffixes = {"executor-logs": f"-{attempt}"}
    return {
        "artifacts": {
            key: {"artifacts": [{"name": key, "uri": f"{folder}/{key}{suffixes.get(key, '')}", "type": kind}]}
            for key, kind in kinds.items()
        }
    }


def _claims(platform: dict[str, Any], label: str) -> list[str]:
    """Names of the volume claims of an executor."""
    kubernetes = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    mounts = kubernetes.get(label, {}).get("pvcMount", [])
    return sorted(mount["pvcNameParameter"]["runtimeValue"]["constant"] for mount in mounts)


_SESSION = {
    "Provider": "minio",
    "Params": {
        "accessKeyKey": "accesskey",
        "disableSSL": "true",
        "endpoint": "seaweedfs.kubeflow:9000",
        "fromEnv": "false",
        "region": "minio",
        "secretKeyKey": "secretkey",
        "secretName": "mlpipeline-minio-artifact",
    },
}


def _runtime_artifact(artifact: StoredArtifact) -> dict[str, Any]:
    """How an artifact of the metadata store comes to the task that reads it: its type is lost."""
    added = {"display_name": Path(artifact.uri).name, "store_session_info": _json(_SESSION)}
    return {
        "name": artifact.name,
        "type": {"instanceSchema": ""},
        "uri": artifact.uri,
        "metadata": artifact.properties | added,
    }


def _stored(value: Any, where: str) -> Any:
    """A metadata value as the store keeps it."""
    if value is None:
        raise TaskFailed(f"{where}: null, which the metadata store cannot hold")
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        return {"list": value}
    return {"struct": value} if isinstance(value, dict) else value


def _holds(condition: str, artifacts: dict[str, Any]) -> bool:
    match = _CONDITION.fullmatch(condition)
    return artifacts[match["key"]]["artifacts"][0]["metadata"][match["name"]] == float(match["value"])


def _cache_key(inputs: dict, outputs: dict, container: dict, claims: list[str]) -> str:
    """What the backend takes for the same: not the content of what is read, and of image and volumes only the names."""
    names = {key: found["artifacts"][0]["name"] for key, found in inputs["artifacts"].items()}
    command = [*container["command"], *container["args"]]
    key = [names, inputs["parameterValues"], outputs, container["image"], command, claims]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _local(pod: Path, uri: str) -> Path:
    scheme, _, rest = uri.partition("://")
    return pod / _FOLDERS[scheme] / rest if scheme in _FOLDERS else Path(uri)


def _prepare(pod: Path, outputs: dict[str, Any]) -> None:
    """The launcher makes the folder around each output, not the output."""
    places = [_local(pod, found["artifacts"][0]["uri"]) for found in outputs["artifacts"].values()]
    for path in (*places, Path(outputs["outputFile"])):
        path.parent.mkdir(parents=True, exist_ok=True)


def _execute(pod: Path, container: dict[str, Any], invocation: dict[str, Any], name: str) -> None:
    """The command as it is, without a shell, its output in the log."""
    document = json.dumps(invocation)
    arguments = [document if text == "{{$}}" else text for text in (*container["command"], *container.get("args", []))]
    if any("{{$" in text for text in arguments if text is not document):
        raise TaskFailed(f"{name}: a placeholder that this executor does not know")
    if max(map(len, arguments)) > _LONGEST_ARGUMENT:
        raise TaskFailed(f"{name}: an argument is longer than the kernel takes")
    folder = pod / "tmp"
    folder.mkdir()
    environment = {
        # What the image brings: its Python, and the package installed in it.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
        "KFP_LAUNCHER_ROOT": str(pod),
        **{variable["name"]: variable["value"] for variable in container.get("env", [])},
    }
    log = _local(pod, invocation["outputs"]["artifacts"]["executor-logs"]["artifacts"][0]["uri"])
    with log.open("wb") as file:
        task = fork_server.Popen(arguments, cwd=folder, env=environment, stdout=file, stderr=file)
    if code := task.wait():
        raise TaskFailed(f"{name}: exit code {code}\n{log.read_text(errors='replace')[-6000:]}")


def _read_output(path: Path, name: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        # Strictly: a field that the backend does not know fails the task.
        output = json_format.Parse(path.read_text(encoding="utf-8"), pb.ExecutorOutput())
    except json_format.ParseError as error:
        raise TaskFailed(f"{name}: its output file cannot be read: {error}") from None
    return json_format.MessageToDict(output)


def node_status(text: str, default_retries: bool, inputs: dict[str, dict[str, Any]] | None = None) -> int:
    """Bytes of the status of a Workflow's nodes when each task has succeeded at its first attempt.

    A task has four nodes: its driver, with the specifications of task, component and container as inputs and a patch
    of the pod as output; itself, its retries and its pod, each with that patch as input. In the patch are the
    ExecutorInput, the component's specification again, and the command.

    Args:
        text: the specification.
        default_retries: the default installation of 2.17 retries whatever Argo runs, so that drivers and tasks have a
            node for their retries, too.
        inputs: task -> ExecutorInput, of a run; default: as in a run whose artifacts have no properties.
    """
    spec, platform = load(text)
    kubernetes = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    values = {name: p.get("defaultValue") for name, p in spec["root"]["inputDefinitions"]["parameters"].items()}
    run, nodes = Run(str(uuid.UUID(int=0))), {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        component = spec["components"][task["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        executor_input = (inputs or {}).get(name) or _bare_input(spec, task, component, values, run)
        patch = _json(
            {
                "containers": [
                    {
                        "name": "main",
                        "image": container["image"],
                        "command": _launcher(executor_input, component, spec["pipelineInfo"]["name"], run.id),
                        "args": [*container["command"], *container["args"]],
                        "env": container.get("env", []),
                        "resources": container.get("resources", {}),
                    }
                ]
            }
        )
        given = {"component": component, "task": task, "container": container}
        if component["executorLabel"] in kubernetes:
            given["kubernetes-config"] = kubernetes[component["executorLabel"]]
        retry = {"retry-max-count": "2", "retry-backoff-duration": "60", "retry-backoff-factor": "2"}
        executor = {"pod-spec-patch": patch, **(retry | {"retry-backoff-max-duration": "86400"})}
        driver = {key: _json(value) for key, value in given.items()} | {"task-name": name, "parent-dag-id": "1234"}
        outputs = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "true"}
        for attempt in ("", "(0)") if default_retries else ("",):
            nodes[f"{name}-driver{attempt}"] = _argo_node(f"{name}-driver{attempt}", driver, outputs)
            nodes[f"{name}{attempt}"] = _argo_node(f"{name}{attempt}", {**executor, "cached-decision": "false"}, {})
        nodes |= {
            f"{name}.executor": _argo_node(f"{name}.executor", executor, {}),
            f"{name}.executor(0)": _argo_node(f"{name}.executor(0)", executor, {}),
        }
    return len(_json(nodes).encode())


def _bare_input(spec: dict, task: dict, component: dict, values: dict[str, Any], run: Run) -> dict[str, Any]:
    base = f"{PIPELINE_ROOT}/pipeline/{spec['pipelineInfo']['name']}/{run.id}"
    artifacts = {}
    for key, source in task.get("inputs", {}).get("artifacts", {}).items():
        origin = source["taskOutputArtifact"]
        uri = f"{base}/{origin['producerTask']}/{run.id}/{origin['outputArtifactKey']}"
        artifacts[key] = {"artifacts": [_runtime_artifact(StoredArtifact("123", "", uri, {}, Path()))]}
    folder = f"{base}/{task['taskInfo']['name']}/{run.id}"
    outputs = _outputs(component.get("outputDefinitions", {}).get("artifacts", {}), folder, 0)
    outputs["outputFile"] = str(_local(Path("/"), f"{folder}/output_metadata.json"))
    parameters = _task_parameters(task, component, values, run)
    return {"inputs": {"parameterValues": parameters, "artifacts": artifacts}, "outputs": outputs}


def _launcher(executor_input: dict, component: dict, pipeline: str, run: str) -> list[str]:
    options = {
        "executor_type": "container",
        "pipeline_name": pipeline,
        "run_id": run,
        "execution_id": "1234",
        "executor_input": _json(executor_input),
        "component_spec": _json(component),
        "pod_name": "$(KFP_POD_NAME)",
        "pod_uid": "$(KFP_POD_UID)",
        "ml_pipeline_server_address": "ml-pipeline.kubeflow",
        "ml_pipeline_server_port": "8887",
        "mlmd_server_address": "metadata-grpc-service.kubeflow",
        "mlmd_server_port": "8080",
        "publish_logs": "true",
        "log_level": "1",
    }
    return ["/kfp-launcher/launch", *(part for key, value in options.items() for part in (f"--{key}", value)), "--"]


def _argo_node(name: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    return {
        "id": "catbreeds-x7k2p-1234567890",
        "name": f"catbreeds-x7k2p.root.{name}",
        "displayName": name,
        "type": "Pod",
        "templateName": "retry-system-container-impl",
        "templateScope": "local/catbreeds-x7k2p",
        "phase": "Succeeded",
        "boundaryID": "catbreeds-x7k2p-1234567890",
        "startedAt": "2026-11-28T10:00:00Z",
        "finishedAt": "2026-11-28T10:01:00Z",
        "progress": "1/1",
        "resourcesDuration": {"cpu": 10, "memory": 100},
        "inputs": {"parameters": [{"name": key, "value": value} for key, value in inputs.items()]},
        "outputs": {"parameters": [{"name": key, "value": value} for key, value in outputs.items()], "exitCode": "0"},
        "children": ["catbreeds-x7k2p-1234567890"],
        "hostNodeName": "kind-control-plane",
    }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
