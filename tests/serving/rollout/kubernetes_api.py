"""As much of a Kubernetes API server as rollout calls: one ConfigMap, pods, resource versions, and faults on demand."""

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
    """Serves until it is closed.

    Attributes:
        config_map: the object, or None.
        history: `data` of each state that it had.
        pods: what a list of them shows.
        calls: method and path of each call.
        fault: (number of the call from now on, starting at 1; kind), or None. Kinds: "reset", "401", "403" and "500",
            before the call is worked on; "reset after" and "500 after"; "409".
        before_write: is called before a ConfigMap is changed; a rival can change it first.
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
            "clusters": [{"name": "double", "cluster": {"server": address}}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "double"}}],
            "users": [{"name": "double", "user": {}}],
            "current-context": "double",
        }
        path.write_text(yaml.safe_dump(config))

    def add_pod(self, name: str, port: int, app: str = "model-server", port_name: str = "grpc") -> dict:
        """A pod that is ready."""
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
        """Code and object of an answer; None: the connection is broken off."""
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
            answer = self._work(method, urlsplit(url), body)
            return _fault(kind.removesuffix(" after")) if kind else answer

    def _work(self, method: str, url, body: dict | None) -> tuple[int, dict]:
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
            given = body["metadata"].get("resourceVersion")  # without one it is changed whatever it is
            if given and given != self.config_map["metadata"]["resourceVersion"]:
                return _status(409)
            return 200, self.change(body)
        return _status(403)  # as the Role has it

    def change(self, body: dict) -> dict:
        """Stores the object under a new resource version."""
        self._revision += 1
        metadata = {**body["metadata"], "resourceVersion": str(self._revision)}
        self.config_map = {**body, "metadata": metadata}
        self.history.append(body["data"])
        return self.config_map


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet, and no delayed acknowledgement is waited for

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        answer = self.api.call(self.command, self.path, json.loads(self.rfile.read(length)) if length else None)
        if answer is None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        content = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


def _fault(kind: str) -> tuple[int, dict] | None:
    return None if kind == "reset" else _status(int(kind))


def _status(code: int) -> tuple[int, dict]:
    return code, {"kind": "Status", "status": "Failure", "code": code, "message": f"the double says {code}"}
