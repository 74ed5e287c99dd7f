"""Our model server as a process of its own, for somebody on this machine who wants to ask: notebooks, for example."""

import atexit
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serving.labels import STABLE
from serving.registry import Registry, RegistryError
from serving.rollout.serving_config import CONFIG_FILE, ServingConfig

_DEADLINE_SECONDS = 300


class ServerError(RuntimeError):
    """The model server did not start; the message is the end of its log."""


class LocalServer:
    """Serves what is stable in a registry, as `stable`, until `stop` or the end of this process.

    Args:
        registry: of pushed models.
        name: of the model.

    Attributes:
        grpc: target of its gRPC.
        rest: address of its REST.

    Raises:
        RegistryError: nothing is stable there.
        ServerError: it does not start.
    """

    def __init__(self, registry: Registry, name: str):
        version = registry.stable()
        if version is None:
            raise RegistryError(f"{registry.base}: no model is in service there; `catbreeds run` trains and pushes one")
        port, rest_port = _free_ports()
        self.grpc, self.rest = f"localhost:{port}", f"http://localhost:{rest_port}"
        self._folder = tempfile.TemporaryDirectory(prefix="catbreeds-server-")
        config, log = Path(self._folder.name, "models.config"), Path(self._folder.name, "log")
        plan = ServingConfig((version,), {STABLE: version})
        config.write_text(plan.files(name, str(registry.base))[CONFIG_FILE], encoding="utf-8")
        command = [sys.executable, "-m", "serving.model_server", f"--port={port}", f"--rest_api_port={rest_port}"]
        command += [f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models"]
        command += ["--max_num_load_retries=0"]  # who waits is told at once
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file)
        atexit.register(self.stop)
        try:
            self._wait(port, rest_port, log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the process; does nothing when it has ended."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._folder.cleanup()

    def _wait(self, port: int, rest_port: int, log: Path) -> None:
        """Until both ports listen: then the model is loaded."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not (_listens(port) and _listens(rest_port)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"the model server does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
