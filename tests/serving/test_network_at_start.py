"""What images start asks no other machine at its start: not every cluster may reach the internet."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.model_server.servers import DEADLINE, eventually, free_port

# Python runs a module of this name at its start. Beside loopback, it notes whom a process asks.
GUARD = """
import os, sys

def note(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        asked = arguments[1]
        local = not isinstance(asked, tuple) or asked[0] in ("127.0.0.1", "::1")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        asked = arguments[0]
        # None and 0.0.0.0 are addresses to listen on.
        local = asked in (None, "", "localhost", b"localhost", "127.0.0.1", "0.0.0.0", "::1", "::")
    else:
        return
    if not local:
        with open(os.environ["ASKED"], "a") as file:
            print(event, asked, file=file)

sys.addaudithook(note)
with open(os.environ["ASKED"], "a"):
    pass
"""

SERVERS = {
    "serving.page": ("CATBREEDS_PAGE_PORT", "/_stcore/health"),
    "serving.gateway": ("CATBREEDS_GATEWAY_PORT", "/healthz"),
    "serving.model_server": ("--rest_api_port", "/monitoring/prometheus/metrics"),
}


def guarded(folder: Path) -> dict[str, str]:
    """The environment of a process under the guard, which notes in the file `asked`."""
    (folder / "sitecustomize.py").write_text(GUARD)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    return os.environ | {"ASKED": str(folder / "asked"), "PYTHONPATH": path, "HOME": str(folder)}


def start(folder: Path, module: str) -> None:
    """Runs a server under the guard until it answers and SIGTERM has ended it."""
    place, port = SERVERS[module][0], free_port()
    environment = guarded(folder)
    flags = []
    if place.startswith("--"):
        (folder / "none.config").write_text("model_config_list {}")
        (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
        flags = [f"{place}={port}", f"--port={free_port()}", f"--model_config_file={folder / 'none.config'}"]
        flags.append(f"--monitoring_config_file={folder / 'monitoring.config'}")
    else:
        environment |= {place: str(port)}
    process = subprocess.Popen([sys.executable, "-m", module, *flags], env=environment, cwd=folder)
    try:
        eventually(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}{SERVERS[module][1]}"))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=DEADLINE, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("module", SERVERS)
def test_a_server_asks_nobody_beyond_this_machine_when_it_starts(tmp_path, module):
    start(tmp_path, module)
    assert (tmp_path / "asked").read_text() == ""


def test_a_task_of_a_pipeline_asks_nobody_by_itself(tmp_path):
    invocation = {
        "inputs": {"parameterValues": {"marker": str(tmp_path / "told")}},
        "outputs": {"artifacts": {}, "outputFile": str(tmp_path / "output.json")},
    }
    command = [
        "-m",
        "pipeline.runners.kubeflow.entrypoint",
        "tests.pipeline.runners.kubeflow.executors.WritesParameterNames",
        json.dumps(invocation),
        "",
    ]
    subprocess.run([sys.executable, *command], env=guarded(tmp_path), check=True, timeout=DEADLINE)
    assert (tmp_path / "told").read_text() == "marker"
    assert (tmp_path / "asked").read_text() == ""


def test_the_guard_notes_who_is_asked(tmp_path):
    script = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", script], env=guarded(tmp_path), check=False)
    assert (tmp_path / "asked").read_text() == "socket.connect ('192.0.2.1', 9)\n"
