"""The fleet of a Kubernetes namespace: a ConfigMap that rollout owns, and the pods that read it when they start.

It gets, creates and updates that ConfigMap and lists pods, nothing else. From outside of the cluster it reaches pods by
`kubectl port-forward`, which gets the pod, and gets or creates its pods/portforward.
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
_FORWARDING = re.compile(r"Forwarding from (127\.0\.0\.1:\d+)")
_TIMEOUT_SECONDS = 30  # for an answer of the API
_FORWARDING_SECONDS = 15  # for kubectl to reach a pod; that of a dead node may never be reached


class _NoDocument(Exception):
    """An answer that is no JSON object; the message says what is wrong with it."""


class _ApiClient(kubernetes.client.ApiClient):
    """The generated client, which takes an answer that is no JSON for an empty object, or fails on it."""

    def deserialize(self, response: Any, response_type: Any) -> Any:
        try:
            if not isinstance(json.loads(response.data), dict):
                raise _NoDocument("JSON that is no object")
        except ValueError as error:
            raise _NoDocument(f"no JSON, or part of it: {error}") from None
        return super().deserialize(response, response_type)


class KubernetesFleet:
    """Servers of one namespace; close it.

    Args:
        namespace: theirs.
        model: its name.
        models: folder that holds the registry's, as the pods see it.
        context: of kubectl's configuration; None: its current one, or the pod's own where this runs in the cluster.

    Raises:
        FleetError: there is no configuration of a cluster, or the environment names a proxy that cannot be used.
    """

    def __init__(self, namespace: str, model: str, models: str, context: str | None = None):
        self.model = model
        self.base_path = f"{models}/{model}"
        self.where = f"namespace {namespace}" + (f" of {context}" if context else "")
        self._namespace = namespace
        self._kubectl = ["kubectl", "--namespace", namespace, *(["--context", context] if context else [])]
        self._inside = context is None and "KUBERNETES_SERVICE_HOST" in os.environ
        self._forwards: dict[tuple[str, str], _Forward] = {}
        # The kernel ends a forwarding with the thread that started it: this one lives until `close`.
        self._starting = ThreadPoolExecutor(1)
        # The object as it was read, of each revision: what others put beside our files stays.
        self._objects: dict[str, Any] = {}
        try:
            configuration = kubernetes.client.Configuration()
            if self._inside:
                kubernetes.config.load_incluster_config(configuration)
            else:
                kubectl_configuration.load(configuration, context)
        except (kubernetes.config.ConfigException, ConfigurationError) as error:
            raise FleetError(f"no configuration of a Kubernetes cluster: {error}") from None
        try:
            proxy = proxies.find(configuration.host)
        except proxies.ProxyError as error:
            raise FleetError(str(error)) from None
        if proxy:
            configuration.proxy, configuration.proxy_headers = proxy.url, proxy.headers
        self._via = proxies.through(configuration.host)
        configuration.retries = False  # what is tried again is decided here
        self._client = _ApiClient(configuration)
        self._api = kubernetes.client.CoreV1Api(self._client)

    def __enter__(self) -> "KubernetesFleet":
        return self

    def __exit__(self, *_: object) -> None:
        for forward in self._forwards.values():
            forward.close()
        self._starting.shutdown()
        self._client.close()

    def read(self) -> tuple[ServingConfig | None, str | None]:
        """See `Fleet`."""
        try:
            found = self._call(self._api.read_namespaced_config_map, CONFIG_MAP, self._namespace)
        except _NotFound:
            return None, None
        revision = found.metadata.resource_version
        self._objects[revision] = found
        try:
            return read_serving_config(found.data or {}, self.model), revision
        except ServingConfigError as error:
            raise FleetError(
                f"{self.where}: ConfigMap {CONFIG_MAP}: {error}; delete it, and promote the version that shall serve"
            ) from None

    def write(self, plan: ServingConfig, revision: str | None) -> str:
        """See `Fleet`."""
        files = plan.files(self.model, self.base_path)
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
            body = self._objects[revision]
            body.data = {**(body.data or {}), **files}
            written = self._call(self._api.replace_namespaced_config_map, CONFIG_MAP, self._namespace, body)
        self._objects = {written.metadata.resource_version: written}
        return written.metadata.resource_version

    def servers(self) -> list[Server]:
        """See `Fleet`."""
        return self._pods(_MODEL_SERVERS, "grpc")

    def gateways(self) -> list[Server]:
        """See `Fleet`."""
        return [gateway for gateway in self._pods(_GATEWAYS, "http") if gateway.ready]

    def reach(self, server: Server) -> str:
        """See `Fleet`. From outside of the cluster it is a forwarded port, which ends when this is closed."""
        if self._inside:
            return server.address
        if not shutil.which("kubectl"):
            raise FleetError("kubectl is not installed; outside of the cluster pods are reached through it")
        key = (server.key, server.address)
        forward = self._forwards.get(key)
        if forward is None or forward.ended:
            port = server.address.rpartition(":")[2]
            command = [*self._kubectl, "port-forward", server.name.replace(" ", "/"), f":{port}"]
            forward = self._forwards[key] = self._starting.submit(_Forward, command).result()
        return forward.address()

    def _pods(self, selector: str, port: str) -> list[Server]:
        found = self._call(self._api.list_namespaced_pod, self._namespace, label_selector=selector)
        servers = (_server(pod, port) for pod in found.items if pod.metadata.deletion_timestamp is None)
        return [server for server in servers if server]

    def _call(self, method, *arguments, **options):
        try:
            return method(*arguments, **options, _request_timeout=_TIMEOUT_SECONDS)
        except ApiException as error:
            message = _message(error)
            if error.status == 404:
                raise _NotFound(f"{self.where}: {message}; is it another --namespace or --context?") from None
            if error.status == 409:
                raise Conflict(f"{self.where}: somebody else has just changed the ConfigMap {CONFIG_MAP}") from None
            if error.status == 401 or (error.status == 403 and ANONYMOUS in message):
                raise FleetError(f"{self.where}: not signed in: {message}; sign in again") from None
            if error.status == 403:
                raise FleetError(f"{self.where}: not allowed: {message}; docs/rollout.md has a Role") from None
            raise FleetError(
                f"{self.where}: Kubernetes answers {error.status}{self._via}: {message}; try again"
            ) from None
        except (_NoDocument, UnicodeDecodeError) as error:
            raise FleetError(f"{self.where}: Kubernetes answers{self._via} with {error}; try again") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise FleetError(f"{self.where}: Kubernetes does not answer{self._via}: {error}; try again") from None


class _NotFound(FleetError):
    pass


class _Forward:
    """A port of this machine that `kubectl port-forward` leads to one of a pod, until it is closed.

    Args:
        command: of kubectl.
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
        # It writes a line for each connection, and would stop once nobody reads them.
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether it leads nowhere any more."""
        return self._process.poll() is not None

    def address(self) -> str:
        """host:port on this machine.

        Raises:
            Unreachable: kubectl does not reach the pod.
        """
        try:
            return self._address.result(_FORWARDING_SECONDS)
        except TimeoutError:
            self.close()
            raise Unreachable(f"kubectl port-forward did not reach it in {_FORWARDING_SECONDS:g} s") from None

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        said = []
        for line in self._process.stdout:
            if self._address.done():
                continue
            if found := _FORWARDING.search(line):
                self._address.set_result(found[1])
            else:
                said.append(line.strip())
        if not self._address.done():
            self._address.set_exception(Unreachable(f"kubectl port-forward: {' '.join(said) or 'ended'}"))


def _server(pod: Any, port: str) -> Server | None:
    """None for a pod that has no node yet, or has ended: it reads the configuration when it starts, if ever."""
    if not pod.spec.node_name or pod.status.phase in ("Succeeded", "Failed"):
        return None
    number, container = next(
        ((one.container_port, of.name) for of in pod.spec.containers for one in of.ports or [] if one.name == port),
        (None, None),
    )
    status = next((one for one in pod.status.container_statuses or [] if one.name == container), None)
    # One that pulls its image has the configuration mounted already, as it was then.
    runs = bool(status and status.state and status.state.running and pod.status.pod_ip)
    ready = runs and any(
        condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions or []
    )
    # A container that was started again has read the configuration again.
    key = f"{pod.metadata.uid}-{status.restart_count if status else 0}-{runs}"
    return Server(f"pod {pod.metadata.name}", key, ready, f"{pod.status.pod_ip}:{number}" if runs else "")


def _message(error: ApiException) -> str:
    """What Kubernetes says, for people; proxies before it answer with something else than its Status object."""
    text = (error.body or "").strip()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["message"]).strip()
    is_sentence = text and text[0] not in "<{["  # no web page, and no JSON of a proxy
    return text.partition("\n")[0][:500] if is_sentence else error.reason or "no reason given"
