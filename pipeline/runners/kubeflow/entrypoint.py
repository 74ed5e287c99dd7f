"""The command of every container of a compiled pipeline.

    python -m pipeline.runners.kubeflow.entrypoint EXECUTOR INVOCATION INPUTS [BEAM...]

EXECUTOR is a Python class, INVOCATION an ExecutorInput in JSON, INPUTS see `input_types`, BEAM are flags of Beam. They
are short because Argo keeps them several times in the status of a run.

TFX's own entry point was written for Vertex AI, where artifacts are opened at their remote URIs. On open-source
Kubeflow Pipelines v2 a launcher downloads and uploads them around the command. Here the one is translated to the other,
around TFX's entry point; on Vertex AI nothing is translated.
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

# The launcher keeps artifacts below these, in folders by scheme; a test has no right to write to "/".
ROOT_VARIABLE = "KFP_LAUNCHER_ROOT"
_FOLDERS = {"minio": "minio", "s3": "s3", "gs": "gcs"}
# Vertex AI sets it in every container.
_VERTEX_VARIABLE = "CLOUD_ML_PROJECT_ID"
_SYSTEM_TYPES = {
    f"system.{name}": f"components.{name}" for name in ("Metrics", "ClassificationMetrics", "HTML", "Markdown")
}
_FILE_TYPES = {"system.HTML", "system.Markdown"} | {
    f"tfx.{name}" for name in ("String", "Integer", "Float", "Boolean", "JsonValue", "Bytes")
}
# What the backend adds to what a component declares.
_ADDED_OUTPUT = "executor-logs"
_INTEGER = "int"
_ADDED_METADATA = {"display_name", "store_session_info"}


class MissingOutputError(RuntimeError):
    """A component has not written what it declares; the backend would only warn, and those after it fail."""


def main(parsed: tuple[argparse.Namespace, list[str]]) -> None:
    """Runs one component.

    Args:
        parsed: EXECUTOR, INVOCATION and INPUTS, and the flags of Beam.

    Raises:
        MissingOutputError: the component has left out an output.
    """
    args, beam_args = parsed
    proxies.apply_to_libraries()
    titles, integers = _parsed_types(args.inputs)
    compiler_utils.TITLE_TO_CLASS_PATH.update(_SYSTEM_TYPES)
    # What is left of TFX's own specification of the inputs: without it, whole numbers arrive as floats.
    kinds = {name: {"parameterType": "NUMBER_INTEGER"} for name in integers}
    args.json_serialized_inputs_spec_args = json.dumps({"parameters": kinds})
    if _VERTEX_VARIABLE in os.environ:
        tfx_entrypoint._run_executor(args, beam_args)
        return
    given = json.loads(args.json_serialized_invocation_args)
    locations = local_paths(given, Path(os.environ.get(ROOT_VARIABLE, "/")))
    translated = localise(given, titles, locations)
    make_folders(translated)
    args.json_serialized_invocation_args = json.dumps(translated)
    tfx_entrypoint._run_executor(args, beam_args)
    refuse_missing(translated)
    output = Path(translated["outputs"]["outputFile"])
    written = globalise(json.loads(output.read_text(encoding="utf-8")), translated, locations)
    output.write_text(json.dumps(written), encoding="utf-8")


def schema(title: str) -> str:
    """The schema of an artifact type, in YAML."""
    return f"title: {title}\ntype: object\n"


def input_types(inputs: dict[str, Any]) -> str:
    """Of the inputs that a component declares, what its container has to know: `examples=tfx.Examples photos=int`.

    Args:
        inputs: the component's ComponentInputsSpec in JSON.
    """
    artifacts = {
        key: yaml.safe_load(value["artifactType"]["instanceSchema"])["title"]
        for key, value in inputs.get("artifacts", {}).items()
        if key[0] != "_"  # the artifact that a condition asks for
    }
    integers = {
        name: _INTEGER
        for name, value in inputs.get("parameters", {}).items()
        if value["parameterType"] == "NUMBER_INTEGER"
    }
    return " ".join(f"{name}={kind}" for found in (artifacts, integers) for name, kind in sorted(found.items()))


def _parsed_types(text: str) -> tuple[dict[str, str], list[str]]:
    """The titles of input artifacts, and the names of parameters that are whole numbers; see `input_types`."""
    kinds = [pair.partition("=")[::2] for pair in text.split()]
    return {key: kind for key, kind in kinds if kind != _INTEGER}, [name for name, kind in kinds if kind == _INTEGER]


def parse_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """EXECUTOR, INVOCATION and INPUTS, the first two under the names of TFX's entry point, and Beam's flags."""
    parser = argparse_flags.ArgumentParser()
    parser.add_argument("executor_class_path", metavar="EXECUTOR")
    parser.add_argument("json_serialized_invocation_args", metavar="INVOCATION")
    parser.add_argument("inputs", metavar="INPUTS")
    return parser.parse_known_args(argv[1:])


def local_paths(invocation: dict[str, Any], root: Path) -> dict[str, str]:
    """URI -> where the launcher keeps it, for the artifacts of an ExecutorInput that it moves.

    Args:
        invocation: ExecutorInput in JSON, as the backend writes it.
        root: of the launcher's folders.
    """
    uris = [artifact["uri"] for side in ("inputs", "outputs") for _, artifact in _artifacts(invocation, side)]
    schemes = {uri: uri.partition("://") for uri in uris}
    return {
        uri: str(root / _FOLDERS[scheme] / rest) for uri, (scheme, _, rest) in schemes.items() if scheme in _FOLDERS
    }


def localise(invocation: dict[str, Any], titles: dict[str, str], locations: dict[str, str]) -> dict[str, Any]:
    """The ExecutorInput as TFX wants it: local URIs, the types of inputs, and nothing that TFX did not declare.

    Args:
        invocation: ExecutorInput in JSON.
        titles: input artifact -> title of its type.
        locations: see `local_paths`.
    """
    inputs, outputs = invocation.get("inputs", {}), invocation["outputs"]
    artifacts = {
        key: [
            artifact
            | {
                "type": {"instanceSchema": schema(titles[key])},
                "uri": locations.get(artifact["uri"], artifact["uri"]),
                "metadata": _plain_metadata(artifact.get("metadata", {})),
            }
            for artifact in found.get("artifacts", [])
        ]
        for key, found in inputs.get("artifacts", {}).items()
        if key in titles
    }
    made = {
        key: [artifact | {"uri": locations.get(artifact["uri"], artifact["uri"])} for artifact in found["artifacts"]]
        for key, found in outputs.get("artifacts", {}).items()
        if key != _ADDED_OUTPUT
    }
    return {
        "inputs": inputs | {"artifacts": {key: {"artifacts": found} for key, found in artifacts.items()}},
        "outputs": outputs | {"artifacts": {key: {"artifacts": found} for key, found in made.items()}},
    }


def make_folders(invocation: dict[str, Any]) -> None:
    """Makes the folder of each output; where the output is a file, the one around it, as the launcher does."""
    for _, artifact in _artifacts(invocation, "outputs"):
        path = Path(artifact["uri"])
        (path.parent if _title(artifact) in _FILE_TYPES else path).mkdir(parents=True, exist_ok=True)


def refuse_missing(invocation: dict[str, Any]) -> None:
    """Sees to it that each output has content; an empty folder gets lost on its way through the object store.

    Raises:
        MissingOutputError: names those without.
    """
    missing = [key for key, artifact in _artifacts(invocation, "outputs") if not _has_content(Path(artifact["uri"]))]
    if missing:
        raise MissingOutputError(f"the component has written nothing for its outputs {', '.join(sorted(missing))}")


def globalise(output: dict[str, Any], invocation: dict[str, Any], locations: dict[str, str]) -> dict[str, Any]:
    """The ExecutorOutput as the backend wants it: remote URIs everywhere, no null, and for the UI nothing but its own.

    Args:
        output: ExecutorOutput in JSON, as TFX writes it.
        invocation: see `localise`.
        locations: see `local_paths`.
    """
    titles = {key: _title(artifact) for key, artifact in _artifacts(invocation, "outputs")}

    def remote(text: str) -> str:
        for uri, path in locations.items():
            if text.startswith(path):
                return uri + text[len(path) :]
        return text

    output = _mapped(output, remote)
    for key, found in output.get("artifacts", {}).items():
        for artifact in found["artifacts"]:
            metadata = artifact.get("metadata", {})
            # Each property would be a row among the metrics.
            dropped = {"tfx_version"} if titles[key] in _SYSTEM_TYPES else set()
            artifact["metadata"] = {k: v for k, v in metadata.items() if v is not None and k not in dropped}
    return output


def _artifacts(invocation: dict[str, Any], side: str) -> list[tuple[str, dict[str, Any]]]:
    found = invocation.get(side, {}).get("artifacts", {})
    return [(key, artifact) for key, value in found.items() for artifact in value.get("artifacts", [])]


def _title(artifact: dict[str, Any]) -> str:
    kind = artifact["type"]
    return kind["schemaTitle"] if "schemaTitle" in kind else yaml.safe_load(kind["instanceSchema"])["title"]


def _plain_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without what the backend adds, and with lists and objects as they were written."""

    def unwrapped(value: Any) -> Any:
        wrapped = isinstance(value, dict) and len(value) == 1 and value.keys() <= {"list", "struct"}
        return next(iter(value.values())) if wrapped else value

    return {key: unwrapped(value) for key, value in metadata.items() if key not in _ADDED_METADATA}


def _has_content(path: Path) -> bool:
    return any(found.is_file() for found in path.rglob("*")) if path.is_dir() else path.exists()


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    """A JSON value with `function` applied to each of its strings."""
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, function) for item in value]
    return function(value) if isinstance(value, str) else value


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
