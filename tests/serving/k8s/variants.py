"""Every variant of the manifests that somebody can deploy, as kustomize renders it."""

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
# The newest that there are schemas for, and the oldest whose features the manifests use.
SUPPORTED = ("1.31", "1.37")
KUBECTL = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
# A line of an overlay that switches a component on when it is uncommented.
_SWITCH = re.compile(r"^  # - (\S+)", re.MULTILINE)

Object = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An overlay with some of its switches on.

    Attributes:
        name: what a failure is called by.
        objects: as applied, the namespace first.
    """

    name: str
    objects: list[Object] = field(repr=False)

    def of(self, *kinds: str) -> list[Object]:
        return [object_ for object_ in self.objects if object_["kind"] in kinds]

    def find(self, kind: str, name: str) -> Object | None:
        return next((object_ for object_ in self.of(kind) if object_["metadata"]["name"] == name), None)

    def pods(self) -> Iterator[tuple[str, Object]]:
        """Name of each Deployment, and its pods' template."""
        for deployment in self.of("Deployment"):
            yield deployment["metadata"]["name"], deployment["spec"]["template"]

    def containers(self) -> Iterator[tuple[str, Object, Object]]:
        """Name of the Deployment, its pods' spec, and each container of it."""
        for name, template in self.pods():
            for container in template["spec"].get("initContainers", []) + template["spec"]["containers"]:
                yield name, template["spec"], container


def render(folder: Path) -> list[Object]:
    process = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert not process.stderr, process.stderr  # warnings of what kustomize deprecates
    return [object_ for object_ in yaml.safe_load_all(process.stdout) if object_]


def switches(overlay: str) -> list[str]:
    """The components that an overlay leaves to be switched on."""
    return _SWITCH.findall(_kustomization(overlay))


def variants(overlay: str, folder: Path) -> list[Variant]:
    """An overlay with each combination of its switches, rendered from copies in `folder`."""
    names = switches(overlay)
    combinations = [chosen for count in range(len(names) + 1) for chosen in itertools.combinations(names, count)]

    def variant(chosen: tuple[str, ...]) -> Variant:
        label = "+".join([overlay, *(Path(name).name for name in chosen)])
        copy = folder / label
        shutil.copytree(K8S, copy)
        text = _SWITCH.sub(lambda found: f"  - {found[1]}" if found[1] in chosen else found[0], _kustomization(overlay))
        (copy / "overlays" / overlay / "kustomization.yaml").write_text(text)
        namespace = yaml.safe_load((K8S / "namespace.yaml").read_text())
        return Variant(label, [namespace, *render(copy / "overlays" / overlay)])

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(variant, combinations))


def _kustomization(overlay: str) -> str:
    return (K8S / "overlays" / overlay / "kustomization.yaml").read_text()
