"""Render all variants of the manifests with kustomize."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "serving" / "k8s"
OVERLAYS = ("local", "gke")
# The oldest Kubernetes version that the manifests support, and the newest with published schemas.
SUPPORTED = ("1.31", "1.37")
KUBECTL = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
# A commented-out component in an overlay.
_OPTIONAL_COMPONENT = re.compile(r"^  # - (\S+)", re.MULTILINE)
# Components that require another one, as the comments in the overlays say.
_REQUIRED_COMPONENTS = {"review": "capture"}

Object = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An overlay with some of its optional components.

    Attributes:
        name: Name for test failures, such as "local+batching".
        objects: Objects in the order of their application, the namespace first.
    """

    name: str
    objects: list[Object] = field(repr=False)

    def of_kind(self, *kinds: str) -> list[Object]:
        return [object_ for object_ in self.objects if object_["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        return next((object_ for object_ in self.of_kind(kind) if object_["metadata"]["name"] == name), None)

    def servers(self) -> Iterator[tuple[str, Object]]:
        """Yield the name and the pod template of each Deployment."""
        for deployment in self.of_kind("Deployment"):
            yield deployment["metadata"]["name"], deployment["spec"]["template"]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Yield the name and the pod template of each Deployment and CronJob."""
        yield from self.servers()
        for job in self.of_kind("CronJob"):
            yield job["metadata"]["name"], job["spec"]["jobTemplate"]["spec"]["template"]

    def server_containers(self) -> Iterator[tuple[str, Object, Object]]:
        """Yield each container of a Deployment, with the name of the Deployment and the pod spec."""
        yield from self._containers(self.servers())

    def containers(self) -> Iterator[tuple[str, Object, Object]]:
        """Yield each container, with the name of its Deployment or CronJob and the pod spec."""
        yield from self._containers(self.pods())

    @staticmethod
    def _containers(pods: Iterator[tuple[str, Object]]) -> Iterator[tuple[str, Object, Object]]:
        for name, template in pods:
            for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]:
                yield name, template["spec"], container


def render(folder: Path) -> list[Object]:
    process = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert not process.stderr, process.stderr  # kustomize warns about deprecated fields
    return [object_ for object_ in yaml.safe_load_all(process.stdout) if object_]


def optional_components(overlay: str) -> list[str]:
    """Return the optional components of an overlay."""
    return _OPTIONAL_COMPONENT.findall(_kustomization(overlay))


def combinations(names: list[str]) -> list[tuple[str, ...]]:
    """Return no component, each one, each pair, and all: two components that do not fit together are a pair.

    A component that requires another one is only in combinations with that one.
    """
    smaller = [chosen for count in range(3) for chosen in itertools.combinations(names, count)]
    return [chosen for chosen in [*smaller, tuple(names)] if _has_required(chosen)]


def _has_required(chosen: tuple[str, ...]) -> bool:
    return all(required in chosen for name, required in _REQUIRED_COMPONENTS.items() if name in chosen)


def variants(overlay: str, folder: Path) -> list[Variant]:
    """Render an overlay with the `combinations` of its optional components, from copies in `folder`."""

    def variant(chosen: tuple[str, ...]) -> Variant:
        label = "+".join([overlay, *(Path(name).name for name in chosen)])
        copy = folder / label
        shutil.copytree(K8S, copy)
        text = _OPTIONAL_COMPONENT.sub(
            lambda match: f"  - {match[1]}" if match[1] in chosen else match[0], _kustomization(overlay)
        )
        (copy / "overlays" / overlay / "kustomization.yaml").write_text(text)
        namespace = yaml.safe_load((K8S / "namespace.yaml").read_text())
        return Variant(label, [namespace, *render(copy / "overlays" / overlay)])

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(variant, combinations(optional_components(overlay))))


def _kustomization(overlay: str) -> str:
    return (K8S / "overlays" / overlay / "kustomization.yaml").read_text()
