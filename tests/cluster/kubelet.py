"""A cluster node on this machine: model servers and gateways are processes, each on its own loopback address.

Like a kubelet, it starts the containers of the pods on its node with their flags, variables and
ConfigMaps, runs their readiness probes, reports their status, waits in `preStop`, sends SIGTERM and removes the pod.
It polls every 0.25 s; a kubelet takes up to two minutes for a ConfigMap, and runs probes by their period. Containers of
other apps stay in the state ContainerCreating. It neither restarts containers nor forwards ports.
"""

import contextlib
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from kubernetes import client
from kubernetes.client import ApiException

from tests import fork_server
from tests.serving.k8s.variants import Object

_POLL_SECONDS = 0.25
_LEASES = "kube-node-lease"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class DnsServer:
    """A DNS server on a free port that resolves the headless Service `model-server`.

    Attributes:
        target: gRPC target for a channel to that Service.
        addresses: Addresses of the Service.
    """

    def __init__(self):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.target = f"dns://127.0.0.1:{self._socket.getsockname()[1]}/model-server:8500"
        self.addresses: tuple[str, ...] = ()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the socket is closed
            while True:
                query, client_address = self._socket.recvfrom(512)
                self._socket.sendto(self._response(query), client_address)

    def _response(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        question, kind = query[12:end], int.from_bytes(query[end - 4 : end - 2], "big")
        known = question.lower().startswith(b"\x0cmodel-server")
        addresses = [socket.inet_aton(address) for address in self.addresses] if known and kind == 1 else []
        flags = b"\x81\x80" if known else b"\x81\x83"
        counts = b"".join(count.to_bytes(2, "big") for count in (1, len(addresses), 0, 0))
        records = b"".join(b"\xc0\x0c\0\1\0\1" + (5).to_bytes(4, "big") + b"\0\4" + address for address in addresses)
        return query[:2] + flags + counts + question + records


class Pod:
    """A pod of the node, and the process of its container.

    Args:
        pod: Object of the API.
        address: IP address that the process listens on.
        folder: Folder for the pod's volumes and log.
        dns: DNS server.
    """

    def __init__(self, pod: Object, address: str, folder: Path, dns: DnsServer):
        self.name, self.uid, self.address = pod["metadata"]["name"], pod["metadata"]["uid"], address
        self.ready = False
        self.process: subprocess.Popen | None = None
        self.ending: threading.Thread | None = None
        self.log = folder / f"{self.name}.log"
        (self.container,) = pod["spec"]["containers"]
        self.app = pod["metadata"]["labels"]["app.kubernetes.io/name"]
        self._grace = pod["spec"]["terminationGracePeriodSeconds"]
        self._folders = {
            mount["mountPath"]: folder / self.name / mount["name"] for mount in self.container["volumeMounts"]
        }
        for path in self._folders.values():
            path.mkdir(parents=True)
        self._config_maps = [volume for volume in pod["spec"]["volumes"] if "configMap" in volume]
        self._dns = dns
        self._started = ""
        self._failed_probes = 0  # consecutive failures

    def mount(self, config_maps: dict[str, dict[str, str]]) -> bool:
        """Write the ConfigMaps' files; return False if a required ConfigMap is missing."""
        for volume in self._config_maps:
            files = config_maps.get(volume["configMap"]["name"])
            if files is None and not volume["configMap"].get("optional"):
                return False
            folder = next(path for path in self._folders.values() if path.name == volume["name"])
            for name, text in (files or {}).items():
                if not (folder / name).is_file() or (folder / name).read_text() != text:
                    (folder / f".{name}").write_text(text)
                    os.replace(folder / f".{name}", folder / name)
        return True

    def start(self) -> None:
        """Start the container's process if it is a model server or a gateway."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CATBREEDS_")}
        if self.app == "model-server":
            flags = [self._with_local_paths(argument) for argument in self.container["args"]]
            command, popen = [sys.executable, "-m", "serving.model_server", *flags], fork_server.Popen
            command.append(f"--host={self.address}")
        elif self.app == "gateway":
            command, popen = [sys.executable, "-m", "serving.gateway"], subprocess.Popen
            environment |= {entry["name"]: self._with_local_paths(entry["value"]) for entry in self.container["env"]}
            assert environment["CATBREEDS_GATEWAY_MODEL_SERVER"] == "dns:///model-server:8500"
            environment |= {
                "CATBREEDS_GATEWAY_MODEL_SERVER": self._dns.target,
                "CATBREEDS_GATEWAY_HOST": self.address,
            }
        else:
            return
        self._started = now()
        with self.log.open("wb") as log:
            self.process = popen(command, env=environment, stdout=log, stderr=log)

    def probe(self) -> None:
        """Run the readiness probe."""
        probe = self.container["readinessProbe"]
        path, port_name = probe["httpGet"]["path"], probe["httpGet"]["port"]
        port = next(port["containerPort"] for port in self.container["ports"] if port["name"] == port_name)
        try:
            succeeds = httpx.get(f"http://{self.address}:{port}{path}", timeout=probe["timeoutSeconds"]).is_success
        except httpx.TransportError:
            succeeds = False
        self._failed_probes = 0 if succeeds else self._failed_probes + 1
        self.ready = succeeds or (self.ready and self._failed_probes < probe["failureThreshold"])

    def status(self) -> dict[str, Any]:
        """Return the status that a kubelet reports."""
        running = self.process is not None
        state = {"running": {"startedAt": self._started}} if running else {"waiting": {"reason": "ContainerCreating"}}
        conditions = [{"type": kind, "status": str(self.ready)} for kind in ("Ready", "ContainersReady")]
        return {
            "phase": "Running" if running else "Pending",
            "podIP": self.address if running else None,
            "podIPs": [{"ip": self.address}] if running else None,
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": self.container["name"],
                    "image": self.container["image"],
                    "imageID": "",
                    "ready": self.ready,
                    "started": running,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }

    def end(self, signal_: signal.Signals = signal.SIGTERM) -> None:
        """End the process; kill it after the grace period."""
        if self.process is None:
            return
        self.process.send_signal(signal_)
        try:
            self.process.wait(self._grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _with_local_paths(self, text: str) -> str:
        mounted = "|".join(map(re.escape, self._folders))
        return re.sub(rf"(^|=)({mounted})/", lambda match: f"{match[1]}{self._folders[match[2]]}/", text)


class Kubelet:
    """A node that runs pods until `close`.

    Args:
        api: Client of the cluster.
        namespace: Namespace whose pods the node runs; the node has the same name.
        folder: Folder for the pods' files.

    Attributes:
        pods: Pods on the node, by name.
    """

    def __init__(self, api: client.ApiClient, namespace: str, folder: Path):
        self.node, self._namespace, self._folder = namespace, namespace, folder
        self.api = api
        self._core, self._coordination = client.CoreV1Api(api), client.CoordinationV1Api(api)
        self.pods: dict[str, Pod] = {}
        self.dns = DnsServer()
        self.failure: BaseException | None = None
        self._pod_count = 0
        self._network = os.urandom(2)
        self._closed = threading.Event()
        self._reported: dict[str, dict[str, Any]] = {}
        self._register()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def ready(self, app: str) -> list[Pod]:
        """Return the ready pods of an app that are not being deleted; raise the error if the node has failed."""
        if self.failure:
            raise self.failure
        return [pod for pod in list(self.pods.values()) if pod.app == app and pod.ready and not pod.ending]

    def close(self) -> None:
        """End all processes and remove the node."""
        self._closed.set()
        self._thread.join()
        for pod in self.pods.values():
            pod.end(signal.SIGKILL)
            if pod.ending:
                pod.ending.join()
        self.dns.close()
        for delete in (
            lambda: self._core.delete_node(self.node),
            lambda: self._coordination.delete_namespaced_lease(self.node, _LEASES),
        ):
            with contextlib.suppress(ApiException):
                delete()

    def _register(self) -> None:
        resources = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "100Gi"}
        node = {
            "metadata": {"name": self.node, "labels": {"kubernetes.io/hostname": self.node}},
            # Keeps other pods off this node.
            "spec": {"taints": [{"key": "catbreeds-test", "effect": "NoSchedule"}]},
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()}
                ],
            },
        }
        self._core.create_node(node)
        self._renew_lease()

    def _renew_lease(self) -> None:
        spec = {"holderIdentity": self.node, "leaseDurationSeconds": 40, "renewTime": now()}
        try:
            self._coordination.patch_namespaced_lease(self.node, _LEASES, {"spec": spec})
        except ApiException as error:
            if error.status != 404:
                raise
            self._coordination.create_namespaced_lease(_LEASES, {"metadata": {"name": self.node}, "spec": spec})

    def _run(self) -> None:
        renewed = time.monotonic()
        try:
            while not self._closed.wait(_POLL_SECONDS):
                if time.monotonic() > renewed + 10:
                    self._renew_lease()
                    renewed = time.monotonic()
                self._sync_pods()
        except BaseException as error:
            self.failure = error
            raise

    def _sync_pods(self) -> None:
        # As JSON, because the generated client does not support `preStop.sleep`.
        listed_pods = json.loads(
            self._core.list_namespaced_pod(
                self._namespace, field_selector=f"spec.nodeName={self.node}", _preload_content=False
            ).data
        )["items"]
        config_maps = {
            config.metadata.name: config.data or {}
            for config in self._core.list_namespaced_config_map(self._namespace).items
        }
        for pod in listed_pods:
            name = pod["metadata"]["name"]
            running_pod = self.pods.get(name)
            if running_pod is None:
                running_pod = self.pods[name] = self._add(pod)
            if "deletionTimestamp" in pod["metadata"]:
                if running_pod.ending is None:
                    running_pod.ending = threading.Thread(target=self._end, args=(running_pod,))
                    running_pod.ending.start()
                continue
            mounted = running_pod.mount(config_maps)
            if running_pod.process is None and mounted:
                running_pod.start()
            if running_pod.process is not None:
                assert running_pod.process.poll() is None, running_pod.log.read_text()
                running_pod.probe()
            self._report(running_pod)
        removed = self.pods.keys() - {pod["metadata"]["name"] for pod in listed_pods}
        for name in removed:
            if self.pods[name].ending is None:  # it was force-deleted
                self.pods[name].end(signal.SIGKILL)
            del self.pods[name]
        self.dns.addresses = tuple(pod.address for pod in self.ready("model-server"))

    def _add(self, pod: Object) -> Pod:
        self._pod_count += 1
        address = f"127.{self._network[0] or 1}.{self._network[1]}.{self._pod_count}"
        return Pod(pod, address, self._folder, self.dns)

    def _report(self, pod: Pod) -> None:
        status = pod.status()
        if self._reported.get(pod.uid) != status:
            with contextlib.suppress(_PodNotFound):
                self._call(pod, self._core.patch_namespaced_pod_status, {"status": status})
                self._reported[pod.uid] = status

    def _end(self, pod: Pod) -> None:
        try:
            if pod.process:
                self._closed.wait(pod.container["lifecycle"]["preStop"]["sleep"]["seconds"])
            pod.end()
            with contextlib.suppress(_PodNotFound):
                options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
                self._call(pod, self._core.delete_namespaced_pod, options)
        except BaseException as error:
            self.failure = error
            raise

    def _call(self, pod: Pod, method: Any, body: dict[str, Any]) -> None:
        try:
            method(pod.name, self._namespace, body=body)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            raise _PodNotFound from None


class _PodNotFound(Exception):
    """The pod no longer exists."""
