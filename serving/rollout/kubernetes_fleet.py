"""The fleet in a Kubernetes namespace: the ConfigMap with the live configuration, and the pods that read it.

It needs permission to get, create and update that ConfigMap and to list pods, nothing else. Outside the cluster it
reaches pods by `kubectl port-forward`, which also gets the pod and gets or creates its pods/portforward.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import kubernetes.client
import kubernetes.config
import urllib3.exceptions
from kubernetes.client import ApiException

from serving import kubectl_configuration, proxies
from serving.kubectl_configuration import ANONYMOUS, ConfigurationError
from serving.local.child_process import bound_command
from serving.rollout.fleet import Conflict, FleetError, Server, Unreachable
from serving.rollout.serving_config import ServingConfig, ServingConfigError, read_serving_config

CONFIG_MAP = "model-config"
_MODEL_SERVERS = "app.kubernetes.io/name=model-server"
_GATEWAYS = "app.kubernetes.io/name=gateway"
_FORWARDING_LINE = re.compile(r"Forwarding from (127\.0\.0\.1:\d+)")
_TIMEOUT_SECONDS = 30  # time limit of a call to the Kubernetes API
_PORT_FORWARD_SECONDS = 15  # time limit for kubectl to reach a pod; a pod on a dead node may never be reached


class _InvalidResponse(Exception):
    """A response that is not a JSON object. The message describes it."""


class _ApiClient(kubernetes.client.ApiClient):
    """The generated client with a check of responses.

    Without the check, it treats a response that is not JSON as an empty object, or crashes.
    """

    def deserialize(self, response: Any, response_type: Any) -> Any:
        try:
            if not isinstance(json.loads(response.data), dict):
                raise _InvalidResponse("JSON that is not an object")
        except ValueError as error:
            raise _InvalidResponse(f"invalid or truncated JSON: {error}") from None
        return super().deserialize(response, response_type)


class KubernetesFleet:
    """Servers in one namespace, for use as a context manager.

    Args:
        namespace: Namespace of the servers.
        model_name: Name of the model.
        models_folder: Folder of the pushed models, as the pods see it.
        context: Context of kubectl's configuration; None for the current one or, in a pod, for its service account.

    Raises:
        FleetError: If no cluster is configured, or the environment names a proxy that cannot be used.
    """

    def __init__(self, namespace: str, model_name: str, models_folder: str, context: str | None = None):
        self.model_name = model_name
        self.base_path = f"{models_folder}/{model_name}"
        self.description = f"namespace {namespace}" + (f" of {context}" if context else "")
        self._namespace = namespace
        self._kubectl = ["kubectl", "--namespace", namespace, *(["--context", context] if context else [])]
        self._in_cluster = context is None and "KUBERNETES_SERVICE_HOST" in os.environ
        self._port_forwards: dict[tuple[str, str], _PortForward] = {}
        # The kernel kills a child process when the thread that started it ends: this thread lives until `__exit__`.
        self._starter_thread = ThreadPoolExecutor(1)
        # The ConfigMap of each revision as it was read, so that a write keeps the keys that other programs added.
        self._config_maps: dict[str, Any] = {}
        try:
            configuration = kubernetes.client.Configuration()
            if self._in_cluster:
                kubernetes.config.load_incluster_config(configuration)
            else:
                kubectl_configuration.load(configuration, context)
        except (kubernetes.config.ConfigException, ConfigurationError) as error:
            raise FleetError(f"no Kubernetes cluster is configured: {error}") from None
        try:
            proxy = proxies.find(configuration.host)
        except proxies.ProxyError as error:
            raise FleetError(str(error)) from None
        if proxy:
            configuration.proxy, configuration.proxy_headers = proxy.url, proxy.headers
        self._proxy_note = proxies.through(configuration.host)
        configuration.retries = False  # the caller decides what to retry
        self._client = _ApiClient(configuration)
        self._api = kubernetes.client.CoreV1Api(self._client)

    def __enter__(self) -> "KubernetesFleet":
        return self

    def __exit__(self, *_: object) -> None:
        for port_forward in self._port_forwards.values():
            port_forward.close()
        self._starter_thread.shutdown()
        self._client.close()

    def read(self) -> tuple[ServingConfig | None, str | None]:
        """See `Fleet`."""
        try:
            config_map = self._call(self._api.read_namespaced_config_map, CONFIG_MAP, self._namespace)
        except _NotFound:
            return None, None
        revision = config_map.metadata.resource_version
        self._config_maps[revision] = config_map
        try:
            return read_serving_config(config_map.data or {}, self.model_name), revision
        except ServingConfigError as error:
            raise FleetError(
                f"{self.description}: ConfigMap {CONFIG_MAP}: {error}; delete it and promote a version"
            ) from None

    def write(self, config: ServingConfig, revision: str | None) -> str:
        """See `Fleet`."""
        files = config.files(self.model_name, self.base_path)
        if revision is None:
            body = kubernetes.client.V1ConfigMap(
                api_version="v1",
                kind="ConfigMap",
                metadata=kubernetes.client.V1ObjectMeta(
                    name=CONFIG_MAP, labels={"app.kubernetes.io/managed-by": "catbreeds-rollout"}
                ),
                data=files,
            )
            written = self._call(self._api.create_namespaced_config_map, self._namespace, body)
        else:
            body = self._config_maps[revision]
            body.data = {**(body.data or {}), **files}
            written = self._call(self._api.replace_namespaced_config_map, CONFIG_MAP, self._namespace, body)
        self._config_maps = {written.metadata.resource_version: written}
        return written.metadata.resource_version

    def servers(self) -> list[Server]:
        """See `Fleet`."""
        return self._pods(_MODEL_SERVERS, "grpc")

    def gateways(self) -> list[Server]:
        """See `Fleet`."""
        return [gateway for gateway in self._pods(_GATEWAYS, "http") if gateway.ready]

    def reachable_address(self, server: Server) -> str:
        """See `Fleet`. Outside the cluster, the address is a forwarded port; forwarding ends with the context."""
        if self._in_cluster:
            return server.address
        if not shutil.which("kubectl"):
            raise FleetError("kubectl is not installed; install it to reach pods from outside the cluster")
        key = (server.key, server.address)
        port_forward = self._port_forwards.get(key)
        if port_forward is None or port_forward.ended:
            port = server.address.rpartition(":")[2]
            command = [*self._kubectl, "port-forward", server.name.replace(" ", "/"), f":{port}"]
            port_forward = self._port_forwards[key] = self._starter_thread.submit(_PortForward, command).result()
        return port_forward.address()

    def _pods(self, selector: str, port_name: str) -> list[Server]:
        pods = self._call(self._api.list_namespaced_pod, self._namespace, label_selector=selector).items
        servers = (_server_in_pod(pod, port_name) for pod in pods if pod.metadata.deletion_timestamp is None)
        return [server for server in servers if server]

    def _call(self, method, *arguments, **options):
        try:
            return method(*arguments, **options, _request_timeout=_TIMEOUT_SECONDS)
        except ApiException as error:
            message = _message(error)
            if error.status == 404:
                raise _NotFound(f"{self.description}: {message}; check --namespace and --context") from None
            if error.status == 409:
                raise Conflict(f"{self.description}: another process has changed the ConfigMap {CONFIG_MAP}") from None
            if error.status == 401 or (error.status == 403 and ANONYMOUS in message):
                raise FleetError(f"{self.description}: not signed in: {message}; sign in again") from None
            if error.status == 403:
                raise FleetError(
                    f"{self.description}: not allowed: {message}; docs/rollout.md has the required Role"
                ) from None
            raise FleetError(
                f"{self.description}: Kubernetes returned {error.status}{self._proxy_note}: {message}; try again"
            ) from None
        except (_InvalidResponse, UnicodeDecodeError) as error:
            raise FleetError(f"{self.description}: Kubernetes{self._proxy_note} returned {error}; try again") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise FleetError(
                f"{self.description}: Kubernetes{self._proxy_note} does not respond: {error}; try again"
            ) from None


class _NotFound(FleetError):
    pass


class _PortForward:
    """A `kubectl port-forward` process that forwards a port of this machine to a port of a pod.

    Args:
        command: Command line of kubectl.
    """

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            bound_command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._address: Future[str] = Future()
        # kubectl writes a line per connection and would block if they were not read.
        threading.Thread(target=self._read_output, daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def address(self) -> str:
        """Return the host:port on this machine.

        Raises:
            Unreachable: If kubectl does not reach the pod.
        """
        try:
            return self._address.result(_PORT_FORWARD_SECONDS)
        except TimeoutError:
            self.close()
            raise Unreachable(
                f"kubectl port-forward did not reach the pod within {_PORT_FORWARD_SECONDS:g} s"
            ) from None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read_output(self) -> None:
        messages = []
        for line in self._process.stdout:
            if self._address.done():
                continue
            if match := _FORWARDING_LINE.search(line):
                self._address.set_result(match[1])
            else:
                messages.append(line.strip())
        if not self._address.done():
            self._address.set_exception(Unreachable(f"kubectl port-forward: {' '.join(messages) or 'ended'}"))


def _server_in_pod(pod: Any, port_name: str) -> Server | None:
    """Return the server in a pod; None if the pod has ended, or has no node yet and reads the configuration later."""
    if not pod.spec.node_name or pod.status.phase in ("Succeeded", "Failed"):
        return None
    port_number, container_name = next(
        (
            (port.container_port, container.name)
            for container in pod.spec.containers
            for port in container.ports or []
            if port.name == port_name
        ),
        (None, None),
    )
    status = next((entry for entry in pod.status.container_statuses or [] if entry.name == container_name), None)
    # A container that is still pulling its image may already have an older ConfigMap mounted.
    running = bool(status and status.state and status.state.running and pod.status.pod_ip)
    ready = running and any(
        condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions or []
    )
    # A restarted container has read the configuration again, so it counts as a new server.
    key = f"{pod.metadata.uid}-{status.restart_count if status else 0}-{running}"
    return Server(f"pod {pod.metadata.name}", key, ready, f"{pod.status.pod_ip}:{port_number}" if running else "")


def _message(error: ApiException) -> str:
    """Return the message of Kubernetes' Status object, or the reason phrase if a proxy returned something else."""
    text = (error.body or "").strip()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["message"]).strip()
    is_message = text and text[0] not in "<{["  # neither a web page nor a proxy's JSON
    return text.partition("\n")[0][:500] if is_message else error.reason or "no reason given"
