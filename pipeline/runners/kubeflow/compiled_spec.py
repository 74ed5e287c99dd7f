"""Compiled pipelines, as `catbreeds compile` writes them: name, version and run parameters."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import strict_yaml
from serving.registry import NO_OBJECT_STORE

SCHEMA_VERSION = "2.1.0"
_PIPELINE_ROOT = re.compile("(s3|minio|gs)://[^/].*")
_MAX_PARAMETER_BYTES = 10_000  # limit of older servers


class SpecError(ValueError):
    """Not a compiled pipeline, or a parameter that does not match it; the message names it and the remedy."""


@dataclass(frozen=True)
class CompiledSpec:
    """A compiled pipeline.

    Attributes:
        path: Path of the YAML file.
        name: Name of the pipeline.
        version: Name of the version, derived from the content of the file.
        tasks: Names of all tasks, including those of nested graphs.
        definitions: Parameter -> its definition, with `parameterType` and optionally `defaultValue`.
    """

    path: Path
    name: str
    version: str
    tasks: frozenset[str]
    definitions: Mapping[str, Mapping[str, Any]]


def read_spec(path: Path) -> CompiledSpec:
    """Read a compiled pipeline.

    Raises:
        SpecError: If the file does not exist or is not a compiled pipeline.
    """
    try:
        content = path.read_bytes()
        document, *_ = strict_yaml.load_all(content)
        version, name = document["schemaVersion"], document["pipelineInfo"]["name"]
        graphs = [document["root"], *document["components"].values()]
        tasks = [task for graph in graphs for task in graph.get("dag", {}).get("tasks", {}).items()]
        definitions = document["root"].get("inputDefinitions", {}).get("parameters", {})
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; create it with `catbreeds compile`") from None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path}: not a compiled pipeline ({error}); create one with `catbreeds compile`") from None
    if version != SCHEMA_VERSION:
        raise SpecError(
            f"{path}: schemaVersion {version}, but {SCHEMA_VERSION} is required; compile the pipeline again"
        )
    return CompiledSpec(
        path=path,
        name=name,
        # Includes the pipeline's name, for servers that store the versions of all pipelines in one namespace.
        version=f"{name}-{hashlib.sha256(content).hexdigest()[:12]}",
        tasks=frozenset(name for key, task in tasks for name in (key, task["taskInfo"]["name"])),
        definitions=definitions,
    )


def run_parameters(spec: CompiledSpec, pairs: Iterable[str], run_date: str | None = None) -> dict[str, Any]:
    """Parse the parameters of a run and check them against the definitions of the pipeline.

    Args:
        spec: Compiled pipeline.
        pairs: Parameters as `name=value`. Strings are not quoted; lists and mappings are in JSON.
        run_date: Default of the parameter `run_date`, if the pipeline has that parameter.

    Raises:
        SpecError: If a parameter is unknown, has a wrong type, is required but missing, or places the registry in an
            object store.
    """
    parameters = {"run_date": run_date} if run_date and "run_date" in spec.definitions else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SpecError(f"--param {pair}: write --param name=value")
        if name not in spec.definitions:
            available = ", ".join(sorted(spec.definitions)) or "none"
            raise SpecError(f"--param {pair}: {spec.path} has no parameter {name!r}; available: {available}")
        if name == "registry" and "://" in text:
            raise SpecError(f"--param registry={NO_OBJECT_STORE.format(text)}")
        parameters[name] = _parse_value(pair, text, spec.definitions[name]["parameterType"])
    missing = [
        name
        for name, definition in spec.definitions.items()
        if name not in parameters and "defaultValue" not in definition and not definition.get("isOptional")
    ]
    if missing:
        raise SpecError(f"{spec.path}: missing parameters: {', '.join(missing)}; pass --param {missing[0]}=...")
    if (size := len(json.dumps(parameters).encode())) > _MAX_PARAMETER_BYTES:
        raise SpecError(
            f"the parameters take {size:,} bytes; the limit of Kubeflow Pipelines is {_MAX_PARAMETER_BYTES:,}"
        )
    return parameters


def check_pipeline_root(root: str | None) -> None:
    """Check the root URI of a run's artifacts. Without this check, the first task would fail without a message.

    Raises:
        SpecError: If it is not the URI of an object store that Kubeflow Pipelines supports.
    """
    if root is not None and not _PIPELINE_ROOT.fullmatch(root):
        raise SpecError(f"--pipeline-root {root}: write s3://BUCKET/PATH, minio://BUCKET/PATH or gs://BUCKET/PATH")


def _parse_value(pair: str, text: str, parameter_type: str) -> Any:
    try:
        match parameter_type:
            case "STRING":
                return text
            case "NUMBER_INTEGER":
                return int(text)
            case "NUMBER_DOUBLE" if math.isfinite(number := float(text)):
                return number
            case "BOOLEAN":
                return {"true": True, "false": False}[text]
            case "LIST" if isinstance(value := json.loads(text, object_pairs_hook=_unique_keys), list):
                return value
            case "STRUCT" if isinstance(value := json.loads(text, object_pairs_hook=_unique_keys), dict):
                return value
    except (ValueError, KeyError):
        pass
    descriptions = {
        "NUMBER_INTEGER": "an integer",
        "NUMBER_DOUBLE": "a number",
        "BOOLEAN": "true or false",
        "LIST": "a list in JSON",
        "STRUCT": "a mapping in JSON without duplicate keys",
    }
    raise SpecError(f"--param {pair}: must be {descriptions.get(parameter_type, parameter_type)}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("duplicate key")
    return values
