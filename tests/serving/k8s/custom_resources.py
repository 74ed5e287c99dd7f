"""CustomResourceDefinitions for the custom resources in the manifests, from the Go modules of their projects."""

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.serving.k8s.variants import Object

# API group -> Go module, version, path of the definitions, and the plural names of the kinds in the manifests.
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
# API group -> reason why no definitions are available.
UNPUBLISHED = {"networking.gke.io": "Google publishes the CustomResourceDefinitions of GKE in no package registry"}
GROUPS = (*MODULES, *UNPUBLISHED)
_DOWNLOAD_SECONDS = 60


class Unavailable(Exception):
    """The definitions of an API group are not available on this machine; the message gives the reason."""


def group(object_: Object) -> str:
    """Return the API group of an object; "" is the core group."""
    return object_["apiVersion"].rpartition("/")[0]


def definitions(api_group: str) -> tuple[Object, ...]:
    """Return the CustomResourceDefinitions of an API group.

    Raises:
        Unavailable: If Go is not installed, the download fails, or the definitions are not published.
    """
    result = _download(api_group)
    if isinstance(result, str):
        raise Unavailable(result)
    return result


@functools.cache
def _download(api_group: str) -> tuple[Object, ...] | str:
    """Return the definitions or the reason for their absence; cached, so that only one test waits for the network."""
    if api_group in UNPUBLISHED:
        return UNPUBLISHED[api_group]
    module, version, path, plurals = MODULES[api_group]
    go = shutil.which("go")
    if not go:
        return f"Go is not installed; it is needed to download {module}@{version}"
    command = [go, "mod", "download", "-json", f"{module}@{version}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{module}@{version}: the download took longer than {_DOWNLOAD_SECONDS} s"
    if process.returncode:
        return json.loads(process.stdout)["Error"] if process.stdout else process.stderr
    folder = Path(json.loads(process.stdout)["Dir"])
    return tuple(yaml.safe_load((folder / path.format(plural)).read_text()) for plural in plurals)


@functools.cache
def invalid(text: str) -> str | None:
    """Return the error in a custom resource, given as JSON; None if it matches the schema of its definition.

    Only the API server checks CEL rules.
    """
    object_ = json.loads(text)
    name, kind = f"{object_['apiVersion']} {object_['kind']}", object_["kind"]
    for definition in definitions(group(object_)):
        for version in definition["spec"]["versions"]:
            if definition["spec"]["names"]["kind"] == kind and object_["apiVersion"].endswith(f"/{version['name']}"):
                schema = _strict(version["schema"]["openAPIV3Schema"])
                # OpenAPI 3.0 equals JSON Schema draft 4, except for `nullable`, which the manifests do not need.
                error = jsonschema.exceptions.best_match(jsonschema.Draft4Validator(schema).iter_errors(object_))
                return error and f"{error.message} at {list(error.absolute_path)}"
    return f"no definition of {name}"


def _strict(schema: Any) -> Any:
    """Return the schema with unknown fields forbidden, as in the API server's strict validation."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return strict
