"""Gateway processes for tests."""

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
    """A running gateway on a free port.

    Args:
        folder: Folder for the log.
        model_server: Port of the model server.
        settings: Settings by name, without the prefix.
    """

    def __init__(self, folder: Path, model_server: int, **settings: object):
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.log = folder / f"gateway-{self.port}.log"
        environment = {"port": self.port, "model_server": f"localhost:{model_server}", **settings}
        with self.log.open("wb") as log:
            self.process = start({name: str(value) for name, value in environment.items()}, stdout=log, stderr=log)
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE)
        eventually(self.is_listening)

    def is_listening(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.http.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """Stop the process and return its exit code."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def predict(self, *photos: bytes, path: str = PREDICT, **options) -> httpx.Response:
        """Send the photos as a form."""
        return self.http.post(path, files=[("file", (f"{n}.jpg", photo)) for n, photo in enumerate(photos)], **options)

    def logged(self, **fields: object) -> dict:
        """Wait for the log line with these fields and return it."""

        def find() -> dict | None:
            lines = map(json.loads, self.log.read_text().splitlines())
            return next((line for line in lines if fields.items() <= line.items()), None)

        return eventually(find)

    def metric(self, line: str) -> float:
        """Return the value of a metric with its labels; 0 if it is missing."""
        rows = self.http.get("/metrics").text.splitlines()
        return next((float(row.rsplit(" ", 1)[1]) for row in rows if row.startswith(line + " ")), 0.0)


def start(settings: dict[str, str], **options) -> subprocess.Popen:
    """Start a gateway process with these settings and no others from the environment."""
    prefix = "CATBREEDS_GATEWAY_"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    environment |= {prefix + name.upper(): value for name, value in settings.items()}
    return subprocess.Popen([sys.executable, "-m", "serving.gateway"], env=environment, **options)


def problem(response: httpx.Response) -> tuple[int, str]:
    """Return the status code and reason of a response with problem details; fail for other responses."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["detail"]
    assert "Traceback" not in response.text
    return response.status_code, document["reason"]
