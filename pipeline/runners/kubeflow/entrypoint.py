"""Entry point of every container of a compiled pipeline.

    python -m pipeline.runners.kubeflow.entrypoint EXECUTOR INVOCATION INPUTS [BEAM...]

EXECUTOR is the path of a Python class, INVOCATION an ExecutorInput in JSON, INPUTS the types of the inputs (see
`input_types`), and BEAM are Beam options. The arguments are short because Argo stores them several times in the status
of a run.

TFX's entry point is written for Vertex AI, where components open artifacts at their remote URIs. In open-source
Kubeflow Pipelines v2, a launcher downloads the inputs before the command and uploads the outputs after it. This module
wraps TFX's entry point and translates between remote URIs and the launcher's local paths; on Vertex AI it translates
nothing.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from absl import app
from absl.flags import argparse_flags
from tfx.orchestration.kubeflow.v2 import compiler_utils
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as tfx_entrypoint

from serving import proxies

# Root of the launcher's folders, by default "/". Tests set it, because they cannot write to "/".
ROOT_VARIABLE = "KFP_LAUNCHER_ROOT"
# URI scheme -> the launcher's folder for its artifacts.
_FOLDERS = {"minio": "minio", "s3": "s3", "gs": "gcs"}
# Vertex AI sets this variable in every container.
_VERTEX_VARIABLE = "CLOUD_ML_PROJECT_ID"
_SYSTEM_TYPES = {
    f"system.{name}": f"components.{name}" for name in ("Metrics", "ClassificationMetrics", "HTML", "Markdown")
}
# Types whose artifacts are files instead of folders.
_FILE_TYPES = {"system.HTML", "system.Markdown"} | {
    f"tfx.{name}" for name in ("String", "Integer", "Float", "Boolean", "JsonValue", "Bytes")
}
# Output and artifact properties that the backend adds.
_ADDED_OUTPUT = "executor-logs"
_ADDED_METADATA = {"display_name", "store_session_info"}
_INTEGER = "int"


class MissingOutputError(RuntimeError):
    """A component did not write a declared output. The backend only logs a warning, and downstream tasks would fail."""


def main(parsed: tuple[argparse.Namespace, list[str]]) -> None:
    """Run one component.

    Args:
        parsed: Parsed arguments EXECUTOR, INVOCATION and INPUTS, and the Beam options.

    Raises:
        MissingOutputError: If the component did not write one of its outputs.
    """
    args, beam_args = parsed
    proxies.apply_to_libraries()
    titles, integers = _parse_input_types(args.inputs)
    compiler_utils.TITLE_TO_CLASS_PATH.update(_SYSTEM_TYPES)
    # The only part of TFX's inputs specification that is needed: without it, integers are passed as floats.
    parameter_types = {name: {"parameterType": "NUMBER_INTEGER"} for name in integers}
    args.json_serialized_inputs_spec_args = json.dumps({"parameters": parameter_types})
    if _VERTEX_VARIABLE in os.environ:
        tfx_entrypoint._run_executor(args, beam_args)
        return
    invocation = json.loads(args.json_serialized_invocation_args)
    paths = local_paths(invocation, Path(os.environ.get(ROOT_VARIABLE, "/")))
    local_invocation = to_local(invocation, titles, paths)
    create_output_folders(local_invocation)
    args.json_serialized_invocation_args = json.dumps(local_invocation)
    tfx_entrypoint._run_executor(args, beam_args)
    check_outputs(local_invocation)
    output_file = Path(local_invocation["outputs"]["outputFile"])
    output = to_remote(json.loads(output_file.read_text(encoding="utf-8")), local_invocation, paths)
    output_file.write_text(json.dumps(output), encoding="utf-8")


def schema(title: str) -> str:
    """Minimal schema of an artifact type, in YAML."""
    return f"title: {title}\ntype: object\n"


def input_types(inputs: dict[str, Any]) -> str:
    """Types that the container needs: of artifacts and of integer parameters, as `examples=tfx.Examples photos=int`.

    Args:
        inputs: ComponentInputsSpec of the component, in JSON.
    """
    artifacts = {
        key: yaml.safe_load(value["artifactType"]["instanceSchema"])["title"]
        for key, value in inputs.get("artifacts", {}).items()
        if key[0] != "_"  # names of artifacts that only a condition uses begin with _
    }
    integers = {
        name: _INTEGER
        for name, value in inputs.get("parameters", {}).items()
        if value["parameterType"] == "NUMBER_INTEGER"
    }
    return " ".join(f"{name}={kind}" for types in (artifacts, integers) for name, kind in sorted(types.items()))


def _parse_input_types(text: str) -> tuple[dict[str, str], list[str]]:
    """Titles of the artifact types by input, and names of the integer parameters; the inverse of `input_types`."""
    types = [pair.partition("=")[::2] for pair in text.split()]
    return {key: kind for key, kind in types if kind != _INTEGER}, [name for name, kind in types if kind == _INTEGER]


def parse_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse EXECUTOR and INVOCATION, under the names that TFX's entry point uses, INPUTS, and the Beam options."""
    parser = argparse_flags.ArgumentParser()
    parser.add_argument("executor_class_path", metavar="EXECUTOR")
    parser.add_argument("json_serialized_invocation_args", metavar="INVOCATION")
    parser.add_argument("inputs", metavar="INPUTS")
    return parser.parse_known_args(argv[1:])


def local_paths(invocation: dict[str, Any], root: Path) -> dict[str, str]:
    """Map the URI of each artifact that the launcher downloads or uploads to its local path.

    Args:
        invocation: ExecutorInput in JSON, from the backend.
        root: Root of the launcher's folders.
    """
    uris = [artifact["uri"] for side in ("inputs", "outputs") for _, artifact in _artifacts(invocation, side)]
    schemes = {uri: uri.partition("://") for uri in uris}
    return {
        uri: str(root / _FOLDERS[scheme] / rest) for uri, (scheme, _, rest) in schemes.items() if scheme in _FOLDERS
    }


def to_local(invocation: dict[str, Any], titles: dict[str, str], paths: dict[str, str]) -> dict[str, Any]:
    """Convert the ExecutorInput for TFX: use local paths, add the types of inputs, and remove undeclared artifacts.

    Args:
        invocation: ExecutorInput in JSON, from the backend.
        titles: Input artifact -> title of its type.
        paths: URI -> local path, see `local_paths`.
    """
    inputs, outputs = invocation.get("inputs", {}), invocation["outputs"]
    declared_inputs = {
        key: [
            artifact
            | {
                "type": {"instanceSchema": schema(titles[key])},
                "uri": paths.get(artifact["uri"], artifact["uri"]),
                "metadata": _plain_metadata(artifact.get("metadata", {})),
            }
            for artifact in value.get("artifacts", [])
        ]
        for key, value in inputs.get("artifacts", {}).items()
        if key in titles
    }
    declared_outputs = {
        key: [artifact | {"uri": paths.get(artifact["uri"], artifact["uri"])} for artifact in value["artifacts"]]
        for key, value in outputs.get("artifacts", {}).items()
        if key != _ADDED_OUTPUT
    }
    return {
        "inputs": inputs | {"artifacts": {key: {"artifacts": artifacts} for key, artifacts in declared_inputs.items()}},
        "outputs": outputs
        | {"artifacts": {key: {"artifacts": artifacts} for key, artifacts in declared_outputs.items()}},
    }


def create_output_folders(invocation: dict[str, Any]) -> None:
    """Create the folder of each output, or its parent folder if the output is a file, as the launcher does."""
    for _, artifact in _artifacts(invocation, "outputs"):
        path = Path(artifact["uri"])
        (path.parent if _title(artifact) in _FILE_TYPES else path).mkdir(parents=True, exist_ok=True)


def check_outputs(invocation: dict[str, Any]) -> None:
    """Check that each output has content; an object store cannot hold an empty folder.

    Raises:
        MissingOutputError: If an output is missing or empty.
    """
    missing = [key for key, artifact in _artifacts(invocation, "outputs") if not _has_content(Path(artifact["uri"]))]
    if missing:
        raise MissingOutputError(f"the component did not write its outputs {', '.join(sorted(missing))}")


def to_remote(output: dict[str, Any], invocation: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    """Convert the ExecutorOutput for the backend: use remote URIs, and remove null values and TFX's own metrics.

    Args:
        output: ExecutorOutput in JSON, from TFX.
        invocation: ExecutorInput in JSON, from `to_local`.
        paths: URI -> local path, see `local_paths`.
    """
    titles = {key: _title(artifact) for key, artifact in _artifacts(invocation, "outputs")}

    def remote_uri(text: str) -> str:
        for uri, path in paths.items():
            if text.startswith(path):
                return uri + text[len(path) :]
        return text

    output = _map_strings(output, remote_uri)
    for key, value in output.get("artifacts", {}).items():
        for artifact in value["artifacts"]:
            metadata = artifact.get("metadata", {})
            # The UI shows each property of such an artifact as a metric.
            dropped = {"tfx_version"} if titles[key] in _SYSTEM_TYPES else set()
            artifact["metadata"] = {k: v for k, v in metadata.items() if v is not None and k not in dropped}
    return output


def _artifacts(invocation: dict[str, Any], side: str) -> list[tuple[str, dict[str, Any]]]:
    """All artifacts of an ExecutorInput with their keys; `side` is "inputs" or "outputs"."""
    artifacts = invocation.get(side, {}).get("artifacts", {})
    return [(key, artifact) for key, value in artifacts.items() for artifact in value.get("artifacts", [])]


def _title(artifact: dict[str, Any]) -> str:
    kind = artifact["type"]
    return kind["schemaTitle"] if "schemaTitle" in kind else yaml.safe_load(kind["instanceSchema"])["title"]


def _plain_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Undo the backend's changes to the properties of an artifact: additions, and wrapped lists and objects."""

    def unwrap(value: Any) -> Any:
        is_wrapped = isinstance(value, dict) and len(value) == 1 and value.keys() <= {"list", "struct"}
        return next(iter(value.values())) if is_wrapped else value

    return {key: unwrap(value) for key, value in metadata.items() if key not in _ADDED_METADATA}


def _has_content(path: Path) -> bool:
    return any(file.is_file() for file in path.rglob("*")) if path.is_dir() else path.exists()


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    """Apply `function` to each string in a JSON value."""
    if isinstance(value, dict):
        return {key: _map_strings(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, function) for item in value]
    return function(value) if isinstance(value, str) else value


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
