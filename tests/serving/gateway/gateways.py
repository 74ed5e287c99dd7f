"""Gateways as processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.serving.classifier import encoded, picture
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

PREDICT = "/v1/breeds:predict"
PHOTOS = [encoded(picture(quarter)) for quarter in range(4)]


class Gateway:
    """A running gateway on a port of its own.

    Args:
        folder: for its log.
        model_server: port of the model server.
        settings: by name, without the prefix.
    """

    def __init__(self, folder: Path, model_server: int, **settings: object):
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.log = folder / f"gateway-{self.port}.log"
        environment = {"port": self.port, "model_server": f"localhost:{model_server}", **settings}
        with self.log.open("wb") as log:
            self.process = start({name: str(value) for name, value in environment.items()}, stdout=log, stderr=log)
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE)
        eventually(self.listens)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.http.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """Ends the process; returns its exit code."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def predict(self, *photos: bytes, path: str = PREDICT, **options) -> httpx.Response:
        """Sends a form."""
        return self.http.post(path, files=[("file", (f"{n}.jpg", photo)) for n, photo in enumerate(photos)], **options)

    def logged(self, **wanted: object) -> dict:
        """The line of the log with these values, as soon as it is there."""

        def line() -> dict | None:
            lines = map(json.loads, self.log.read_text().splitlines())
            return next((line for line in lines if wanted.items() <= line.items()), None)

        return eventually(line)

    def metric(self, line: str) -> float:
        """The value of a line of the metrics; 0 if it is not there."""
        rows = self.http.get("/metrics").text.splitlines()
        return next((float(row.rsplit(" ", 1)[1]) for row in rows if row.startswith(line + " ")), 0.0)


def start(settings: dict[str, str], **options) -> subprocess.Popen:
    """Starts a process with these variables and no others of the gateway."""
    prefix = "CATBREEDS_GATEWAY_"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    environment |= {prefix + name.upper(): value for name, value in settings.items()}
    return subprocess.Popen([sys.executable, "-m", "serving.gateway"], env=environment, **options)


def problem(response: httpx.Response) -> tuple[int, str]:
    """Code and reason of a problem document; fails if it is none."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["detail"]
    assert "Traceback" not in response.text
    return response.status_code, document["reason"]
