"""A fake of the Kubernetes API that rollout uses: one ConfigMap, pods, resource versions, and faults on demand."""

import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

NAMESPACE = "shop"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class KubernetesApi:
    """HTTP server that runs until `close`.

    Attributes:
        config_map: The ConfigMap, or None.
        history: `data` of every state of the ConfigMap, in order.
        pods: Pods that a list call returns.
        calls: Method and path of each call.
        fault: Number of the call that fails, counted from 1 from now on, and the kind of the fault; None for no fault.
            "reset", "401", "403" and "500" fail before the call is processed, "reset after" and "500 after" when it has
            been processed, "409" at a write.
        before_write: Function to call before the ConfigMap is changed; it can change the ConfigMap itself.
    """

    def __init__(self):
        self.config_map: dict | None = None
        self.history: list[dict] = []
        self.pods: list[dict] = []
        self.calls: list[str] = []
        self.fault: tuple[int, str] | None = None
        self.before_write = lambda: None
        self._revision = 100
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        address = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "clusters": [{"name": "fake", "cluster": {"server": address}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "users": [{"name": "fake", "user": {}}],
            "current-context": "fake",
        }
        path.write_text(yaml.safe_dump(config))

    def add_pod(self, name: str, port: int, app: str = "model-server", port_name: str = "grpc") -> dict:
        """Add a ready pod and return it."""
        pod = {
            "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"app.kubernetes.io/name": app}},
            "spec": {
                "nodeName": "node",
                "containers": [{"name": app, "ports": [{"name": port_name, "containerPort": port}]}],
            },
            "status": {
                "podIP": "127.0.0.1",
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {
                        "name": app,
                        "image": app,
                        "imageID": app,
                        "ready": True,
                        "restartCount": 0,
                        "state": {"running": {}},
                    }
                ],
            },
        }
        self.pods.append(pod)
        return pod

    def call(self, method: str, url: str, body: dict | None) -> tuple[int, dict] | None:
        """Return the status code and object of the response; None resets the connection."""
        with self._lock:
            self.calls.append(f"{method} {urlsplit(url).path}")
            kind = ""
            if self.fault:
                number, kind = self.fault
                self.fault = (number - 1, kind) if number > 1 else None
                kind = kind if number == 1 else ""
            if kind == "409" and method == "GET":
                kind = ""
            if kind in ("reset", "401", "403", "409", "500"):
                return _fault(kind)
            response = self._process(method, urlsplit(url), body)
            return _fault(kind.removesuffix(" after")) if kind else response

    def _process(self, method: str, url, body: dict | None) -> tuple[int, dict]:
        if method == "GET" and url.path == PODS:
            key, _, value = parse_qs(url.query)["labelSelector"][0].partition("=")
            return 200, {"items": [pod for pod in self.pods if pod["metadata"]["labels"].get(key) == value]}
        if method == "GET" and url.path == f"{CONFIG_MAPS}/model-config":
            return (200, self.config_map) if self.config_map else _status(404)
        if method == "POST" and url.path == CONFIG_MAPS:
            return _status(409) if self.config_map else (201, self.change(body))
        if method == "PUT" and url.path == f"{CONFIG_MAPS}/model-config":
            self.before_write()
            if self.config_map is None:
                return _status(404)
            revision = body["metadata"].get("resourceVersion")  # without one, a write never conflicts
            if revision and revision != self.config_map["metadata"]["resourceVersion"]:
                return _status(409)
            return 200, self.change(body)
        return _status(403)  # the Role allows no other calls

    def change(self, body: dict) -> dict:
        """Store the ConfigMap with a new resource version and return it."""
        self._revision += 1
        metadata = {**body["metadata"], "resourceVersion": str(self._revision)}
        self.config_map = {**body, "metadata": metadata}
        self.history.append(body["data"])
        return self.config_map


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # sends a response as one packet, which avoids delayed acknowledgements

    def _respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        response = self.api.call(self.command, self.path, json.loads(self.rfile.read(length)) if length else None)
        if response is None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        content = json.dumps(response[1]).encode()
        self.send_response(response[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _respond

    def log_message(self, *_: object) -> None:
        pass


def _fault(kind: str) -> tuple[int, dict] | None:
    return None if kind == "reset" else _status(int(kind))


def _status(code: int) -> tuple[int, dict]:
    return code, {"kind": "Status", "status": "Failure", "code": code, "message": f"fake error {code}"}
