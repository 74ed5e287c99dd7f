"""A compiled pipeline, as `catbreeds compile` writes it: its name, its version, and what a run may set."""

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
_MOST_PARAMETER_BYTES = 10_000  # older servers refuse more


class SpecError(ValueError):
    """The file is no compiled pipeline, or a parameter does not fit it; the message names it and says what to do."""


@dataclass(frozen=True)
class CompiledSpec:
    """What is needed to run a compiled pipeline.

    Attributes:
        path: the YAML file.
        name: of the pipeline.
        version: name of this version; the same file has the same.
        tasks: names of all tasks, those of nested graphs included.
        definitions: parameter -> its definition, `parameterType` and perhaps `defaultValue`.
    """

    path: Path
    name: str
    version: str
    tasks: frozenset[str]
    definitions: Mapping[str, Mapping[str, Any]]


def read_spec(path: Path) -> CompiledSpec:
    """Reads a compiled pipeline.

    Raises:
        SpecError: the file is not there, or not what `catbreeds compile` writes.
    """
    try:
        content = path.read_bytes()
        document, *_ = strict_yaml.load_all(content)
        version, name = document["schemaVersion"], document["pipelineInfo"]["name"]
        graphs = [document["root"], *document["components"].values()]
        tasks = [task for graph in graphs for task in graph.get("dag", {}).get("tasks", {}).items()]
        definitions = document["root"].get("inputDefinitions", {}).get("parameters", {})
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; `catbreeds compile` writes compiled pipelines") from None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path}: not a compiled pipeline ({error}); `catbreeds compile` writes them") from None
    if version != SCHEMA_VERSION:
        raise SpecError(f"{path}: schemaVersion {version}, but Kubeflow Pipelines takes {SCHEMA_VERSION}; compile anew")
    return CompiledSpec(
        path=path,
        name=name,
        # With the pipeline's name, for a server that keeps versions as Kubernetes objects of one namespace.
        version=f"{name}-{hashlib.sha256(content).hexdigest()[:12]}",
        tasks=frozenset(name for key, task in tasks for name in (key, task["taskInfo"]["name"])),
        definitions=definitions,
    )


def run_parameters(spec: CompiledSpec, given: Iterable[str], run_date: str | None = None) -> dict[str, Any]:
    """Parameters of a run: `key=value` pairs, checked against what the pipeline takes.

    Args:
        spec: the pipeline.
        given: the pairs; text as it is, numbers, true or false, lists and mappings in JSON.
        run_date: value of the parameter of that name, where the pipeline has it and no pair sets it.

    Raises:
        SpecError: the pipeline has no such parameter, the value is of another type, one that it needs is not given, or
            the registry is in an object store.
    """
    parameters = {"run_date": run_date} if run_date and "run_date" in spec.definitions else {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise SpecError(f"--param {pair}: write --param name=value")
        if name not in spec.definitions:
            there = ", ".join(sorted(spec.definitions)) or "none"
            raise SpecError(f"--param {pair}: {spec.path} has no parameter {name!r}; there are: {there}")
        if name == "registry" and "://" in text:
            raise SpecError(f"--param registry={NO_OBJECT_STORE.format(text)}")
        parameters[name] = _value(pair, text, spec.definitions[name]["parameterType"])
    missing = [
        name
        for name, definition in spec.definitions.items()
        if name not in parameters and "defaultValue" not in definition and not definition.get("isOptional")
    ]
    if missing:
        raise SpecError(f"{spec.path} needs a value for {', '.join(missing)}: --param {missing[0]}=...")
    if (size := len(json.dumps(parameters).encode())) > _MOST_PARAMETER_BYTES:
        raise SpecError(f"the parameters take {size:,} bytes; Kubeflow Pipelines takes {_MOST_PARAMETER_BYTES:,}")
    return parameters


def check_pipeline_root(root: str | None) -> None:
    """Checks where the artifacts of a run go; the server takes anything, and its first task fails without a reason.

    Raises:
        SpecError: it is no URI of an object store that Kubeflow Pipelines can use.
    """
    if root is not None and not _PIPELINE_ROOT.fullmatch(root):
        raise SpecError(f"--pipeline-root {root}: write s3://BUCKET/PATH, minio://BUCKET/PATH or gs://BUCKET/PATH")


def _value(pair: str, text: str, kind: str) -> Any:
    try:
        match kind:
            case "STRING":
                return text
            case "NUMBER_INTEGER":
                return int(text)
            case "NUMBER_DOUBLE" if math.isfinite(number := float(text)):
                return number
            case "BOOLEAN":
                return {"true": True, "false": False}[text]
            case "LIST" if isinstance(value := json.loads(text, object_pairs_hook=_distinct), list):
                return value
            case "STRUCT" if isinstance(value := json.loads(text, object_pairs_hook=_distinct), dict):
                return value
    except (ValueError, KeyError):
        pass
    wanted = {
        "NUMBER_INTEGER": "a whole number",
        "NUMBER_DOUBLE": "a number",
        "BOOLEAN": "true or false",
        "LIST": "a list in JSON",
        "STRUCT": "a mapping in JSON, each key once",
    }
    raise SpecError(f"--param {pair}: must be {wanted.get(kind, kind)}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("duplicate key")
    return values
