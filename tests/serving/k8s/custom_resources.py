"""CustomResourceDefinitions of the operators that the manifests use, from the Go modules of their projects."""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.serving.k8s.variants import Object

# API group -> Go module, version, and the files in it that define the kinds that the manifests have.
MODULES = {
    "gateway.networking.k8s.io": (
        "sigs.k8s.io/gateway-api",
        "v1.5.1",
        "config/crd/standard/gateway.networking.k8s.io_{}.yaml",
        ("gateways", "httproutes"),
    ),
    "monitoring.coreos.com": (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.93.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml",
        ("podmonitors", "prometheusrules"),
    ),
}
# API group -> why there are none.
UNPUBLISHED = {"networking.gke.io": "Google publishes the CustomResourceDefinitions of GKE in no package registry"}
GROUPS = (*MODULES, *UNPUBLISHED)
_DOWNLOAD_SECONDS = 60


class Unavailable(Exception):
    """There are no definitions of a group on this machine; the message says why."""


def group(object_: Object) -> str:
    """API group; "" is the core."""
    return object_["apiVersion"].rpartition("/")[0]


def definitions(api_group: str) -> tuple[Object, ...]:
    """The objects to apply to a cluster.

    Raises:
        Unavailable: Go or the module is not there, or nobody publishes them.
    """
    found = _find(api_group)
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@functools.cache
def _find(api_group: str) -> tuple[Object, ...] | str:
    """The objects, or why there are none: no second test waits for a network that is not there."""
    if api_group in UNPUBLISHED:
        return UNPUBLISHED[api_group]
    module, version, path, plurals = MODULES[api_group]
    go = shutil.which("go")
    if not go:
        return f"Go is not installed, which downloads {module}@{version}"
    command = [go, "mod", "download", "-json", f"{module}@{version}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{module}@{version}: no download in {_DOWNLOAD_SECONDS} s"
    if process.returncode:
        return json.loads(process.stdout)["Error"] if process.stdout else process.stderr
    folder = Path(json.loads(process.stdout)["Dir"])
    return tuple(yaml.safe_load((folder / path.format(plural)).read_text()) for plural in plurals)


@functools.cache
def invalid(text: str) -> str | None:
    """Why a custom resource, as JSON, is not valid by the schema of its definition; None if it is.

    Rules in CEL are checked by the API server alone.
    """
    object_ = json.loads(text)
    name, kind = f"{object_['apiVersion']} {object_['kind']}", object_["kind"]
    for definition in definitions(group(object_)):
        for version in definition["spec"]["versions"]:
            if definition["spec"]["names"]["kind"] == kind and object_["apiVersion"].endswith(f"/{version['name']}"):
                schema = _strict(version["schema"]["openAPIV3Schema"])
                # OpenAPI 3.0 is JSON Schema's draft 4, but for `nullable`, which no manifest of ours needs.
                error = jsonschema.exceptions.best_match(jsonschema.Draft4Validator(schema).iter_errors(object_))
                return error and f"{error.message} at {list(error.absolute_path)}"
    return f"there is no {name}"


def _strict(schema: Any) -> Any:
    """The schema without fields that it does not name, which the API server refuses by strict validation."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return strict
