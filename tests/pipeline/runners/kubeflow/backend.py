"""Emulation of the Kubeflow Pipelines backend, versions 2.15 to 2.17, which runs compiled pipelines on one machine.

It applies the same checks and changes to specifications and files as the API server, the driver and the launcher: it
rejects, rewrites and drops the same data. Each task is a separate process, started with the command in the
specification. The object store and the pods are folders.

It does not test whether the image can be built and pulled, contains everything that the tasks need, and allows them to
write; whether the cluster has the requested CPU, memory, GPUs, volumes and Secrets, and whether they suffice; further
validation by the API server and Argo; object stores, permissions, timeouts and the network.
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
_MAX_PARAMETER_BYTES = 10_000  # of all parameters of a run together
_MAX_ARGUMENT_LENGTH = 128 * 1024  # limit of the Linux kernel
_MAX_WORKFLOW_BYTES = 1_500_000
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
    """The server would reject the specification or the parameters of the run."""


class TaskFailed(Exception):
    """A task failed; the message contains the end of its log."""


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact in the metadata store.

    Attributes:
        name: ID in the metadata store, a number as a string.
        type: Title of the schema.
        uri: URI in the object store.
        properties: Custom properties, in the format of the metadata store.
        content: File or folder in the emulated object store.
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
    """Result of a run.

    Attributes:
        id: ID of the run.
        scheduled: Scheduled time, or time of creation, as 2026-11-29T03:00:00Z.
        states: Task -> SUCCEEDED, CACHED, SKIPPED (its condition is false) or OMITTED (an upstream task is skipped).
        artifacts: Task -> output key -> artifact.
        inputs: Task -> its ExecutorInput in JSON.
        warnings: Warnings of the launcher.
    """

    id: str
    scheduled: str = "2026-11-28T10:00:00Z"
    states: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, dict[str, StoredArtifact]] = field(default_factory=dict)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def tasks(self, state: str) -> set[str]:
        return {task for task, task_state in self.states.items() if task_state == state}


def load(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse the pipeline and platform specifications in a file and validate them like the server.

    Raises:
        Rejected: If the server, or its compiler to Argo, would reject them.
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
    _require(len(json.dumps(spec)) < _MAX_WORKFLOW_BYTES, "the workflow is too large for etcd")
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    tasks = spec["root"]["dag"]["tasks"]
    for name, task in tasks.items():
        _check_task(spec, declared, tasks, name, task)
    _topological_order(tasks)
    labels = {component["executorLabel"] for component in spec["components"].values()}
    _require(labels >= spec["deploymentSpec"]["executors"].keys(), "an executor has no component")
    for kubernetes in platform.get("platforms", {}).values():
        configured = kubernetes["deploymentSpec"]["executors"]
        _require(
            labels >= configured.keys(), f"platform specification of unknown executors {configured.keys() - labels}"
        )
    return spec, platform


def _check_task(spec: dict, declared: dict, tasks: dict, name: str, task: dict) -> None:
    _require(_TASK_NAME.fullmatch(name), f"Argo does not accept the task name {name}")
    _require(name == task["taskInfo"]["name"], f"{name}: taskInfo has another name")
    component = spec["components"].get(task["componentRef"]["name"])
    _require(component, f"{name}: no such component")
    executor = spec["deploymentSpec"]["executors"].get(component["executorLabel"])
    _require(executor, f"{name}: no such executor")
    _require("resolver" not in executor, f"{name}: resolver not implemented yet")
    container = executor["container"]
    _require("lifecycle" not in container, f"{name}: the backend never runs lifecycle hooks")
    _require(container.get("image") and container.get("command"), f"{name}: no image or command")
    definitions = component.get("inputDefinitions", {})
    inputs = task.get("inputs", {})
    for key, artifact in inputs.get("artifacts", {}).items():
        _require(key in definitions.get("artifacts", {}), f"{name}: {key} is not an input of its component")
        source = artifact["taskOutputArtifact"]
        _require(source["producerTask"] in tasks, f"{name}: {key}: no task {source['producerTask']}")
        producer = spec["components"][tasks[source["producerTask"]]["componentRef"]["name"]]
        outputs = producer["outputDefinitions"]["artifacts"]
        _require(source["outputArtifactKey"] in outputs, f"{name}: {key}: no such output of {source['producerTask']}")
    missing = definitions.get("artifacts", {}).keys() - inputs.get("artifacts", {}).keys()
    _require(not missing, f"{name}: missing inputs {missing}")
    for key, value in inputs.get("parameters", {}).items():
        _require(key in definitions.get("parameters", {}), f"{name}: {key} is not a parameter of its component")
        if "componentInputParameter" in value:
            _require(value["componentInputParameter"] in declared, f"{name}: {key}: no such parameter of the pipeline")
    missing = {
        key
        for key, parameter in definitions.get("parameters", {}).items()
        if key not in inputs.get("parameters", {})
        and "defaultValue" not in parameter
        and not parameter.get("isOptional")
    }
    _require(not missing, f"{name}: missing parameters {missing}")
    for dependency in task.get("dependentTasks", []):
        _require(dependency in tasks, f"{name}: depends on {dependency}, which is not a task")
    condition = task.get("triggerPolicy", {}).get("condition", "")
    if condition:
        match = _CONDITION.fullmatch(condition)
        _require(match, f"{name}: this emulation does not support the condition {condition}")
        _require(
            match["key"] in inputs.get("artifacts", {}),
            f"{name}: its condition uses {match['key']}, which is not an input",
        )


def _topological_order(tasks: dict[str, Any]) -> list[str]:
    """Names of the tasks, each after its upstream tasks."""
    order: list[str] = []
    while len(order) < len(tasks):
        ready = [name for name in tasks if name not in order and _upstream(tasks[name]) <= set(order)]
        _require(ready, f"a cycle among {tasks.keys() - set(order)}")
        order += ready
    return order


def _upstream(task: dict[str, Any]) -> set[str]:
    """Names of the tasks that must succeed first: declared dependencies and producers of the inputs."""
    artifacts = task.get("inputs", {}).get("artifacts", {}).values()
    return {
        *task.get("dependentTasks", []),
        *(artifact["taskOutputArtifact"]["producerTask"] for artifact in artifacts),
    }


def _require(condition: object, message: str) -> None:
    if not condition:
        raise Rejected(message)


class Backend:
    """Emulated cluster: object store, metadata store and cache.

    Args:
        folder: Folder for its files.
        workers: Number of tasks that run in parallel.
        whole_folders: Whether a download contains only objects below the URI of the artifact. If False, it contains all
            objects whose key starts with the URI, as in version 2.15.
        retry_policy: Retry policy of Argo. OnError, the default of version 2.17, does not retry tasks that exit with an
            error.
    """

    def __init__(self, folder: Path, workers: int = 2, *, whole_folders: bool = True, retry_policy: str = "OnFailure"):
        self._folder, self._workers = folder, workers
        self._whole_folders, self._retry_policy = whole_folders, retry_policy
        self._bucket = folder / "bucket"
        self._cache: dict[str, dict[str, StoredArtifact]] = {}
        self._artifact_count = 0
        self._lock = threading.Lock()

    def run(self, text: str, parameters: dict[str, Any], scheduled: str | None = None) -> Run:
        """Run a specification to completion.

        Args:
            text: Specification in YAML.
            parameters: Parameters of the run.
            scheduled: Scheduled time of the run; None for a run without schedule.

        Raises:
            Rejected: If the server would reject the specification or the parameters.
            TaskFailed: If a task failed.
        """
        spec, platform = load(text)
        values = _runtime_parameters(spec, parameters)
        run = Run(str(uuid.uuid4()), **({"scheduled": scheduled} if scheduled else {}))
        tasks = spec["root"]["dag"]["tasks"]
        pending, running = _topological_order(tasks), {}
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            while pending or running:
                for name in [name for name in pending if _upstream(tasks[name]) <= run.states.keys()]:
                    pending.remove(name)
                    if any(run.states[task] in ("SKIPPED", "OMITTED") for task in _upstream(tasks[name])):
                        run.states[name] = "OMITTED"  # Argo requires that every upstream task succeeds
                    else:
                        running[pool.submit(self._run_task, spec, platform, values, run, name)] = name
                finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    try:
                        run.states[name], run.artifacts[name] = future.result()
                    except BaseException:
                        pending.clear()
                        raise
        return run

    def _run_task(
        self, spec: dict, platform: dict, values: dict, run: Run, name: str
    ) -> tuple[str, dict[str, StoredArtifact]]:
        """Emulate the driver, then the launcher, which Argo retries."""
        task = spec["root"]["dag"]["tasks"][name]
        component = spec["components"][task["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        inputs = {"parameterValues": _task_parameters(task, component, values, run), "artifacts": {}}
        for key, source in task.get("inputs", {}).get("artifacts", {}).items():
            producer = source["taskOutputArtifact"]
            artifact = run.artifacts[producer["producerTask"]][producer["outputArtifactKey"]]
            inputs["artifacts"][key] = {"artifacts": [_runtime_artifact(artifact)]}
        condition = task.get("triggerPolicy", {}).get("condition", "")
        if condition and not _is_true(condition, inputs["artifacts"]):
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
            # The path of the output file is local to the pod.
            invocation["outputs"]["outputFile"] = str(_local(pod, f"{folder}/output_metadata.json"))
            run.inputs[name] = invocation
            self._download(pod, inputs["artifacts"])
            _create_output_folders(pod, invocation["outputs"])
            try:
                _execute(pod, container, invocation, name)
                break
            except TaskFailed:
                if attempt + 1 == attempts:
                    raise
        artifacts = self._upload(pod, base, name, invocation["outputs"], run)
        shutil.rmtree(pod)
        if caching:
            self._cache[cache_key] = artifacts
        return "SUCCEEDED", artifacts

    def _retries(self, task: dict[str, Any]) -> int:
        """Number of times that Argo retries a task that exits with an error."""
        policy = task.get("retryPolicy", {})
        # Without a maximum, the server passes a maximum of 0 seconds to Argo.
        has_retry_window = float(policy.get("backoffMaxDuration", "0s").removesuffix("s")) > 0
        return policy.get("maxRetryCount", 0) if has_retry_window and self._retry_policy != "OnError" else 0

    def _download(self, pod: Path, artifacts: dict[str, Any]) -> None:
        """Copy the object at the URI of each artifact and those below it; before 2.17, all whose key starts with it."""
        for value in artifacts.values():
            uri = value["artifacts"][0]["uri"]
            source, target = self._object(uri), _local(pod, uri)
            for path in [source] if self._whole_folders else source.parent.glob(f"{source.name}*"):
                for file in [path] if path.is_file() else path.rglob("*"):
                    if file.is_file():
                        copy = Path(os.path.normpath(target / os.path.relpath(file, source)))
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, copy)

    def _upload(self, pod: Path, base: str, name: str, outputs: dict[str, Any], run: Run) -> dict[str, StoredArtifact]:
        written = _read_output(Path(outputs["outputFile"]), name)
        stored = {}
        for key, value in outputs["artifacts"].items():
            artifact = value["artifacts"][0]
            reported = written.get("artifacts", {}).get(key, {}).get("artifacts", [{}])[0]
            uri = reported.get("uri") or artifact["uri"]
            metadata = artifact.get("metadata", {}) | reported.get("metadata", {})
            if uri.partition("://")[0] in _FOLDERS and not uri.startswith(f"{base}/"):
                raise TaskFailed(f"{name}: {key} is at {uri}, outside of the run")
            source, target = _local(pod, uri), self._object(uri)
            if not source.exists():
                run.warnings.append(f"{name}: output {key} is not at {uri}; nothing is uploaded")
            files = [source] if source.is_file() else [path for path in source.rglob("*") if not path.is_dir()]
            if any(path.is_symlink() and path.is_dir() for path in source.rglob("*")):
                raise TaskFailed(f"{name}: {key} contains a link to a directory")
            for file in files:  # empty directories are lost
                copy = target if file == source else target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            if key != "executor-logs":
                properties = {k: _store_property(v, f"{name}: {key}: {k}") for k, v in metadata.items()}
                title = yaml.safe_load(artifact["type"]["instanceSchema"])["title"]
                stored[key] = StoredArtifact(self._next_id(), title, uri, properties, target)
        return stored

    def _object(self, uri: str) -> Path:
        return self._bucket / uri.partition("://")[2]

    def _next_id(self) -> str:
        with self._lock:
            self._artifact_count += 1
            return str(self._artifact_count)


def _runtime_parameters(spec: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    _require(declared.keys() >= parameters.keys(), f"unknown parameters: {parameters.keys() - declared.keys()}")
    values = {}
    for name, definition in declared.items():
        if name in parameters:
            values[name] = parameters[name]
        elif "defaultValue" in definition:
            values[name] = definition["defaultValue"]
        else:
            _require(definition.get("isOptional"), f"parameter {name} is missing and has no default")
            values[name] = None
            continue
        parameter_type = definition["parameterType"]
        _require(_has_type(values[name], parameter_type), _type_error(name, values[name], parameter_type))
    size = len(json.dumps(values).encode())
    _require(size < _MAX_PARAMETER_BYTES, f"the parameters take {size} bytes; the limit is {_MAX_PARAMETER_BYTES}")
    return values


def _has_type(value: Any, parameter_type: str) -> bool:
    if isinstance(value, bool) and parameter_type != "BOOLEAN":
        return False
    return isinstance(value, _PYTHON_TYPES[parameter_type])


def _type_error(name: str, value: Any, parameter_type: str) -> str:
    return f"parameter {name}: {value!r} is not of type {parameter_type}"


def _task_parameters(task: dict, component: dict, values: dict[str, Any], run: Run) -> dict[str, Any]:
    placeholders = {"{{$.pipeline_job_uuid}}": run.id, "{{$.pipeline_job_schedule_time_utc}}": run.scheduled}
    definitions = component.get("inputDefinitions", {}).get("parameters", {})
    parameters = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source:
            value = values[source["componentInputParameter"]]
            if value is None:
                if definitions[name].get("isOptional"):
                    continue
                raise TaskFailed(f"the resolved input parameter is null: {name}")
        else:
            value = source["runtimeValue"]["constant"]
            value = placeholders.get(value, value) if isinstance(value, str) else value
        parameter_type = definitions[name]["parameterType"]
        # The driver converts any value of a STRING parameter to a string.
        value = json.dumps(value) if parameter_type == "STRING" and not isinstance(value, str) else value
        if not _has_type(value, parameter_type):
            raise TaskFailed(_type_error(name, value, parameter_type))
        parameters[name] = value
    return parameters


def _outputs(declared: dict[str, Any], folder: str, attempt: int) -> dict[str, Any]:
    """Outputs of an ExecutorInput, including the log of the attempt, which the backend adds."""
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
    """Names of the PersistentVolumeClaims of an executor."""
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
    """An artifact as an input of a task; its type is lost."""
    added = {"display_name": Path(artifact.uri).name, "store_session_info": _json(_SESSION)}
    return {
        "name": artifact.name,
        "type": {"instanceSchema": ""},
        "uri": artifact.uri,
        "metadata": artifact.properties | added,
    }


def _store_property(value: Any, where: str) -> Any:
    """Convert the value of a property to the format of the metadata store."""
    if value is None:
        raise TaskFailed(f"{where}: null, which the metadata store does not support")
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list):
        return {"list": value}
    return {"struct": value} if isinstance(value, dict) else value


def _is_true(condition: str, artifacts: dict[str, Any]) -> bool:
    match = _CONDITION.fullmatch(condition)
    return artifacts[match["key"]]["artifacts"][0]["metadata"][match["name"]] == float(match["value"])


def _cache_key(inputs: dict, outputs: dict, container: dict, claims: list[str]) -> str:
    """Cache key of a task. It contains ids of artifacts instead of their content, and names of images and volumes."""
    names = {key: value["artifacts"][0]["name"] for key, value in inputs["artifacts"].items()}
    command = [*container["command"], *container["args"]]
    key = [names, inputs["parameterValues"], outputs, container["image"], command, claims]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _local(pod: Path, uri: str) -> Path:
    scheme, _, rest = uri.partition("://")
    return pod / _FOLDERS[scheme] / rest if scheme in _FOLDERS else Path(uri)


def _create_output_folders(pod: Path, outputs: dict[str, Any]) -> None:
    """Create the parent folder of each output, like the launcher."""
    paths = [_local(pod, value["artifacts"][0]["uri"]) for value in outputs["artifacts"].values()]
    for path in (*paths, Path(outputs["outputFile"])):
        path.parent.mkdir(parents=True, exist_ok=True)


def _execute(pod: Path, container: dict[str, Any], invocation: dict[str, Any], name: str) -> None:
    """Run the command without a shell; its output goes to the log."""
    document = json.dumps(invocation)
    arguments = [document if text == "{{$}}" else text for text in (*container["command"], *container.get("args", []))]
    if any("{{$" in text for text in arguments if text is not document):
        raise TaskFailed(f"{name}: a placeholder that this emulation does not support")
    if max(map(len, arguments)) > _MAX_ARGUMENT_LENGTH:
        raise TaskFailed(f"{name}: an argument exceeds the limit of the kernel")
    folder = pod / "tmp"
    folder.mkdir()
    environment = {
        # Provided by the image: Python and the installed package.
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
        # Unknown fields fail the task.
        output = json_format.Parse(path.read_text(encoding="utf-8"), pb.ExecutorOutput())
    except json_format.ParseError as error:
        raise TaskFailed(f"{name}: its output file is invalid: {error}") from None
    return json_format.MessageToDict(output)


def node_status(text: str, default_retries: bool, inputs: dict[str, dict[str, Any]] | None = None) -> int:
    """Size in bytes of the node status of a Workflow in which every task succeeded in its first attempt.

    Each task has four nodes: the driver, with the specifications of the task, the component and the container as inputs
    and a patch of the pod as output; and the task, its retries and its pod, with this patch as input. The patch has the
    ExecutorInput, the specification of the component again, and the command.

    Args:
        text: Specification in YAML.
        default_retries: Whether Argo retries all templates, as in the default installation of 2.17. Then drivers and
            tasks have additional nodes for their retries.
        inputs: Task -> ExecutorInput of a run; None for inputs whose artifacts have no properties.
    """
    spec, platform = load(text)
    kubernetes = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    values = {name: p.get("defaultValue") for name, p in spec["root"]["inputDefinitions"]["parameters"].items()}
    run, nodes = Run(str(uuid.UUID(int=0))), {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        component = spec["components"][task["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        executor_input = (inputs or {}).get(name) or _minimal_input(spec, task, component, values, run)
        patch = _json(
            {
                "containers": [
                    {
                        "name": "main",
                        "image": container["image"],
                        "command": _launcher_command(executor_input, component, spec["pipelineInfo"]["name"], run.id),
                        "args": [*container["command"], *container["args"]],
                        "env": container.get("env", []),
                        "resources": container.get("resources", {}),
                    }
                ]
            }
        )
        specifications = {"component": component, "task": task, "container": container}
        if component["executorLabel"] in kubernetes:
            specifications["kubernetes-config"] = kubernetes[component["executorLabel"]]
        retry = {"retry-max-count": "2", "retry-backoff-duration": "60", "retry-backoff-factor": "2"}
        executor = {"pod-spec-patch": patch, **(retry | {"retry-backoff-max-duration": "86400"})}
        driver = {key: _json(value) for key, value in specifications.items()} | {
            "task-name": name,
            "parent-dag-id": "1234",
        }
        outputs = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "true"}
        for attempt in ("", "(0)") if default_retries else ("",):
            nodes[f"{name}-driver{attempt}"] = _argo_node(f"{name}-driver{attempt}", driver, outputs)
            nodes[f"{name}{attempt}"] = _argo_node(f"{name}{attempt}", {**executor, "cached-decision": "false"}, {})
        nodes |= {
            f"{name}.executor": _argo_node(f"{name}.executor", executor, {}),
            f"{name}.executor(0)": _argo_node(f"{name}.executor(0)", executor, {}),
        }
    return len(_json(nodes).encode())


def _minimal_input(spec: dict, task: dict, component: dict, values: dict[str, Any], run: Run) -> dict[str, Any]:
    base = f"{PIPELINE_ROOT}/pipeline/{spec['pipelineInfo']['name']}/{run.id}"
    artifacts = {}
    for key, source in task.get("inputs", {}).get("artifacts", {}).items():
        producer = source["taskOutputArtifact"]
        uri = f"{base}/{producer['producerTask']}/{run.id}/{producer['outputArtifactKey']}"
        artifacts[key] = {"artifacts": [_runtime_artifact(StoredArtifact("123", "", uri, {}, Path()))]}
    folder = f"{base}/{task['taskInfo']['name']}/{run.id}"
    outputs = _outputs(component.get("outputDefinitions", {}).get("artifacts", {}), folder, 0)
    outputs["outputFile"] = str(_local(Path("/"), f"{folder}/output_metadata.json"))
    parameters = _task_parameters(task, component, values, run)
    return {"inputs": {"parameterValues": parameters, "artifacts": artifacts}, "outputs": outputs}


def _launcher_command(executor_input: dict, component: dict, pipeline: str, run: str) -> list[str]:
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
