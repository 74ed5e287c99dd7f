"""The cluster that KUBECONFIG names, and what is deployed to it in a namespace of its own."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import yaml

from serving.registry import Registry
from serving.rollout.kubernetes_fleet import CONFIG_MAP
from serving.rollout.model_server_client import ModelServerClient
from tests import fork_server
from tests.cluster.kubelet import Kubelet
from tests.serving.gateway.gateways import PHOTOS, PREDICT
from tests.serving.k8s.variants import K8S, KUBECTL, Object
from tests.serving.model_server.servers import DEADLINE, eventually

MODEL = "catbreeds"


def kubectl(*arguments: object, objects: list[Object] | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """Runs kubectl; `objects` are its standard input."""
    text = None if objects is None else json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    command = [KUBECTL, *map(str, arguments), *([] if objects is None else ["--filename", "-"])]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=10 * DEADLINE, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def get(*arguments: object) -> Object:
    """An object, or a list of them."""
    return json.loads(kubectl("get", *arguments, "--output", "json").stdout)


@contextlib.contextmanager
def made_namespace() -> Iterator[str]:
    """A namespace as `serving/k8s/namespace.yaml` makes it, under a name of its own; it is deleted in the end."""
    name = f"catbreeds-test-{secrets.token_hex(3)}"
    kubectl("apply", objects=moved([yaml.safe_load((K8S / "namespace.yaml").read_text())], name))
    try:
        yield name
    finally:
        kubectl("delete", "pods", "--all", "--force", "--namespace", name)
        kubectl("delete", "namespace", name)
        kubectl("delete", "persistentvolume", f"{name}-models", "--ignore-not-found")


def moved(objects: list[Object], namespace: str, node: str | None = None) -> list[Object]:
    """Objects of a variant in another namespace; its pods on the node `node`, if that is given."""
    text = json.dumps(objects)
    for key in ("namespace", "name"):
        text = text.replace(f'"{key}": "catbreeds-models"', f'"{key}": "{namespace}-models"')
    text = text.replace('"namespace": "catbreeds"', f'"namespace": "{namespace}"')
    text = text.replace('"volumeName": "catbreeds-models"', f'"volumeName": "{namespace}-models"')
    others = json.loads(text)
    for other in others:
        if other["kind"] == "Namespace":
            other["metadata"]["name"] = namespace
        if other["kind"] == "Deployment" and node:
            spec = other["spec"]["template"]["spec"]
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
            spec["tolerations"] = [{"key": "catbreeds-test", "operator": "Exists"}]
    return others


@dataclass(frozen=True)
class Deployed:
    """The overlay `local` with two model servers and two gateways, in a namespace of its own.

    Attributes:
        namespace: its name.
        objects: as they were applied.
        kubelet: of the node that runs them.
        registry: versions 1 to 4.
        models: folder of models as pods see it, which has what `publish` copied.
        account: folder with the token of the ServiceAccount `rollout`.
    """

    namespace: str
    objects: list[Object]
    kubelet: Kubelet
    registry: Registry
    models: Path
    account: Path

    def apply(self) -> str:
        return kubectl("apply", objects=self.objects).stdout

    def publish(self, version: int) -> None:
        """Copies a version to where pods see it."""
        target = self.models / MODEL / str(version)
        if not target.exists():
            shutil.copytree(self.registry.path(version), target.with_suffix(".staged"))
            target.with_suffix(".staged").rename(target)

    def sign_in(self) -> None:
        """Writes what a pod of the ServiceAccount `rollout` has."""
        token = kubectl("--namespace", self.namespace, "create", "token", "rollout", "--duration", "2h").stdout
        (self.account / "token").write_text(token.strip())
        (self.account / "ca.crt").write_bytes(base64.b64decode(_cluster()["certificate-authority-data"]))

    def start(self, *arguments: object) -> subprocess.Popen:
        """Starts `catbreeds` as in a pod of the ServiceAccount `rollout`."""
        server = urlsplit(_cluster()["server"])
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"} | {
            "KUBERNETES_SERVICE_HOST": server.hostname,
            "KUBERNETES_SERVICE_PORT": str(server.port or 443),
            "SERVICE_ACCOUNT": str(self.account),
        }
        # Traffic that is counted in seconds, and a machine that is busy with other things.
        settings = (f"models={self.models}", "min_requests=20", "max_latency_ratio=1000")
        options = ["--workdir", self.registry.base.parent.parent, "--namespace", self.namespace]
        options += [option for setting in settings for option in ("--set", f"rollout.{setting}")]
        command = [sys.executable, "-m", "tests.cluster.command_in_pod", *arguments, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return fork_server.Popen(list(map(str, command)), env=environment, text=True, **pipes)

    def run(self, *arguments: object) -> str:
        """Runs `catbreeds` like that, and sees it succeed; returns what it prints."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output + errors
        return output

    def begin_with(self, version: int) -> None:
        """Makes a version stable, and none canary."""
        self.run("canary", "--stop")
        self.run("promote", version)
        eventually(lambda: len(self.kubelet.ready("model-server")) == len(self.kubelet.ready("gateway")) == 2)

    def live(self) -> Object:
        """The live configuration, a ConfigMap."""
        return get("configmap", CONFIG_MAP, "--namespace", self.namespace)

    def labels(self) -> list[dict[str, int]]:
        """Labels of the registry, and of each model server that is ready."""
        labels = [self.registry.labels()]
        for pod in self.kubelet.ready("model-server"):
            with ModelServerClient(f"{pod.address}:8500", MODEL) as server:
                labels.append(server.labels(("stable", "canary")))
        return labels

    @contextlib.contextmanager
    def traffic(self, people: int = 4) -> Iterator["Traffic"]:
        """Lets people ask the gateways for as long as the block runs, and sees nothing fail."""
        traffic = Traffic(self.kubelet)
        with ThreadPoolExecutor(people) as threads:
            asking = [threads.submit(traffic.ask, f"person {number}") for number in range(people)]
            try:
                eventually(lambda: traffic.versions or traffic.failures)
                yield traffic
            finally:
                traffic.ended.set()
        for person in asking:
            person.result()
        assert not traffic.failures, traffic.failures[0]


class Traffic:
    """Requests, each on a connection of its own, to a gateway that is ready.

    Attributes:
        versions: that answered, in the order of the answers.
        failures: what else came.
    """

    def __init__(self, kubelet: Kubelet):
        self.versions: list[int] = []
        self.failures: list[str] = []
        self.ended = threading.Event()
        self._kubelet = kubelet

    def ask(self, name: str) -> None:
        number = 0
        while not self.ended.wait(0.02):  # leaves the servers some of the machine
            number += 1
            gateways = self._kubelet.ready("gateway")
            address = gateways[number % len(gateways)].address
            try:
                response = httpx.post(
                    f"http://{address}:8000{PREDICT}",
                    content=PHOTOS[0],
                    headers={"X-Request-Key": f"{name} {number}"},
                    timeout=DEADLINE,
                )
            except httpx.TransportError as error:
                self.failures.append(repr(error))
                continue
            if response.is_success:
                self.versions.append(response.json()["model"]["version"])
            else:
                self.failures.append(response.text)

    def goes_to(self, versions: set[int]) -> bool:
        """Whether what is answered from now on comes from all of these versions, and from no others."""
        seen = len(self.versions)
        eventually(lambda: self.failures or len(self.versions) > seen + 40)
        assert not self.failures, self.failures[0]
        return set(self.versions[seen + 8 :]) == versions


def _cluster() -> dict[str, str]:
    """Address and certificate of the API server."""
    view = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json").stdout)
    return view["clusters"][0]["cluster"]
