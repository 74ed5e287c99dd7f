"""Access to the cluster of KUBECONFIG, and a deployment in its own namespace."""

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
    """Run kubectl with `objects` as its standard input."""
    text = None if objects is None else json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    command = [KUBECTL, *map(str, arguments), *([] if objects is None else ["--filename", "-"])]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=10 * DEADLINE, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def get(*arguments: object) -> Object:
    """Return an object or a list of objects."""
    return json.loads(kubectl("get", *arguments, "--output", "json").stdout)


@contextlib.contextmanager
def temporary_namespace() -> Iterator[str]:
    """Create the namespace of `serving/k8s/namespace.yaml` under a unique name, and delete it afterwards."""
    name = f"catbreeds-test-{secrets.token_hex(3)}"
    kubectl("apply", objects=in_namespace([yaml.safe_load((K8S / "namespace.yaml").read_text())], name))
    try:
        yield name
    finally:
        kubectl("delete", "pods", "--all", "--force", "--namespace", name)
        kubectl("delete", "namespace", name)
        kubectl("delete", "persistentvolume", f"{name}-models", "--ignore-not-found")


def in_namespace(objects: list[Object], namespace: str, node: str | None = None) -> list[Object]:
    """Return copies of a variant's objects in another namespace, with their pods on `node` if it is given."""
    text = json.dumps(objects)
    for key in ("namespace", "name"):
        text = text.replace(f'"{key}": "catbreeds-models"', f'"{key}": "{namespace}-models"')
    text = text.replace('"namespace": "catbreeds"', f'"namespace": "{namespace}"')
    text = text.replace('"volumeName": "catbreeds-models"', f'"volumeName": "{namespace}-models"')
    copies = json.loads(text)
    for copy in copies:
        if copy["kind"] == "Namespace":
            copy["metadata"]["name"] = namespace
        if copy["kind"] == "Deployment" and node:
            spec = copy["spec"]["template"]["spec"]
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
            spec["tolerations"] = [{"key": "catbreeds-test", "operator": "Exists"}]
    return copies


@dataclass(frozen=True)
class Deployed:
    """The overlay `local` with two model servers and two gateways, in its own namespace.

    Attributes:
        namespace: Name of the namespace.
        objects: Applied objects.
        kubelet: Kubelet of the node that runs the pods.
        registry: Registry with versions 1 to 4.
        models: Folder that the pods mount as models; it contains the versions that `publish` copied.
        account: Folder with the token of the ServiceAccount `rollout`.
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
        """Copy a version to the folder that the pods mount."""
        target = self.models / MODEL / str(version)
        if not target.exists():
            shutil.copytree(self.registry.path(version), target.with_suffix(".staged"))
            target.with_suffix(".staged").rename(target)

    def sign_in(self) -> None:
        """Write the token and certificate that a pod of the ServiceAccount `rollout` has."""
        token = kubectl("--namespace", self.namespace, "create", "token", "rollout", "--duration", "2h").stdout
        (self.account / "token").write_text(token.strip())
        (self.account / "ca.crt").write_bytes(base64.b64decode(_cluster()["certificate-authority-data"]))

    def start(self, *arguments: object) -> subprocess.Popen:
        """Start `catbreeds` in the environment of a pod with the ServiceAccount `rollout`."""
        server = urlsplit(_cluster()["server"])
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"} | {
            "KUBERNETES_SERVICE_HOST": server.hostname,
            "KUBERNETES_SERVICE_PORT": str(server.port or 443),
            "SERVICE_ACCOUNT": str(self.account),
        }
        # The tests send few requests, and latencies vary on a busy machine.
        settings = (f"models_dir={self.models}", "min_requests=20", "max_latency_ratio=1000")
        options = ["--workdir", self.registry.base.parent.parent, "--namespace", self.namespace]
        options += [option for setting in settings for option in ("--set", f"rollout.{setting}")]
        command = [sys.executable, "-m", "tests.cluster.command_in_pod", *arguments, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return fork_server.Popen(list(map(str, command)), env=environment, text=True, **pipes)

    def run(self, *arguments: object) -> str:
        """Run `catbreeds` like `start`, assert that it succeeds, and return its output."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, output + errors
        return output

    def reset_to(self, version: int) -> None:
        """Make a version stable and stop any canary."""
        self.run("canary", "--stop")
        self.run("promote", version)
        eventually(lambda: len(self.kubelet.ready("model-server")) == len(self.kubelet.ready("gateway")) == 2)

    def live(self) -> Object:
        """Return the live configuration, a ConfigMap."""
        return get("configmap", CONFIG_MAP, "--namespace", self.namespace)

    def labels(self) -> list[dict[str, int]]:
        """Return the labels of the registry and of each ready model server."""
        labels = [self.registry.labels()]
        for pod in self.kubelet.ready("model-server"):
            with ModelServerClient(f"{pod.address}:8500", MODEL) as server:
                labels.append(server.labels(("stable", "canary")))
        return labels

    @contextlib.contextmanager
    def traffic(self, clients: int = 4) -> Iterator["Traffic"]:
        """Send requests to the gateways while the block runs, and assert that none fails."""
        traffic = Traffic(self.kubelet)
        with ThreadPoolExecutor(clients) as threads:
            senders = [threads.submit(traffic.send, f"person {number}") for number in range(clients)]
            try:
                eventually(lambda: traffic.versions or traffic.failures)
                yield traffic
            finally:
                traffic.stopped.set()
        for sender in senders:
            sender.result()
        assert not traffic.failures, traffic.failures[0]


class Traffic:
    """Requests to the ready gateways, each on a new connection.

    Attributes:
        versions: Version of each successful response, in order.
        failures: Errors and unsuccessful responses.
    """

    def __init__(self, kubelet: Kubelet):
        self.versions: list[int] = []
        self.failures: list[str] = []
        self.stopped = threading.Event()
        self._kubelet = kubelet

    def send(self, client: str) -> None:
        number = 0
        while not self.stopped.wait(0.02):  # leaves CPU time to the servers
            number += 1
            gateways = self._kubelet.ready("gateway")
            address = gateways[number % len(gateways)].address
            try:
                response = httpx.post(
                    f"http://{address}:8000{PREDICT}",
                    content=PHOTOS[0],
                    headers={"X-Request-Key": f"{client} {number}"},
                    timeout=DEADLINE,
                )
            except httpx.TransportError as error:
                self.failures.append(repr(error))
                continue
            if response.is_success:
                self.versions.append(response.json()["model"]["version"])
            else:
                self.failures.append(response.text)

    def receives_only(self, versions: set[int]) -> bool:
        """Return whether responses from now on come from all of these versions and from no others."""
        start = len(self.versions)
        eventually(lambda: self.failures or len(self.versions) > start + 40)
        assert not self.failures, self.failures[0]
        return set(self.versions[start + 8 :]) == versions


def _cluster() -> dict[str, str]:
    """Return the address and certificate of the API server."""
    view = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json").stdout)
    return view["clusters"][0]["cluster"]
