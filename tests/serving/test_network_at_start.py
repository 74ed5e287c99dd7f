"""Programs of the images contact no other machine when they start: some clusters have no internet access."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.model_server.servers import DEADLINE, eventually, free_port

# Source of a sitecustomize module, which Python imports at startup. It records connections other than to loopback.
GUARD = """
import os, sys

def record(event, arguments):
    if event == "socket.connect" or event == "socket.sendto":
        address = arguments[1]
        local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0]
        # None and 0.0.0.0 are addresses to listen on.
        local = address in (None, "", "localhost", b"localhost", "127.0.0.1", "0.0.0.0", "::1", "::")
    else:
        return
    if not local:
        with open(os.environ["GUARD_LOG"], "a") as file:
            print(event, address, file=file)

sys.addaudithook(record)
with open(os.environ["GUARD_LOG"], "a"):
    pass
"""

SERVERS = {
    "serving.page": ("CATBREEDS_PAGE_PORT", "/_stcore/health"),
    "serving.gateway": ("CATBREEDS_GATEWAY_PORT", "/healthz"),
    "serving.model_server": ("--rest_api_port", "/monitoring/prometheus/metrics"),
}


def guarded(folder: Path) -> dict[str, str]:
    """Return the environment of a process under the guard, which writes to the file `contacted`."""
    (folder / "sitecustomize.py").write_text(GUARD)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    return os.environ | {"GUARD_LOG": str(folder / "contacted"), "PYTHONPATH": path, "HOME": str(folder)}


def start_and_stop(folder: Path, module: str) -> None:
    """Run a server under the guard until it responds, then stop it with SIGTERM."""
    port_option, port = SERVERS[module][0], free_port()
    environment = guarded(folder)
    flags = []
    if port_option.startswith("--"):
        (folder / "none.config").write_text("model_config_list {}")
        (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
        flags = [f"{port_option}={port}", f"--port={free_port()}", f"--model_config_file={folder / 'none.config'}"]
        flags.append(f"--monitoring_config_file={folder / 'monitoring.config'}")
    else:
        environment |= {port_option: str(port)}
    process = subprocess.Popen([sys.executable, "-m", module, *flags], env=environment, cwd=folder)
    try:
        eventually(lambda: process.poll() is not None or _responds(f"http://127.0.0.1:{port}{SERVERS[module][1]}"))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, timeout=DEADLINE, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("module", SERVERS)
def test_starting_server_contacts_no_other_machine(tmp_path, module):
    start_and_stop(tmp_path, module)
    assert (tmp_path / "contacted").read_text() == ""


def test_pipeline_task_contacts_no_other_machine(tmp_path):
    invocation = {
        "inputs": {"parameterValues": {"marker": str(tmp_path / "parameters")}},
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
    assert (tmp_path / "parameters").read_text() == "marker"
    assert (tmp_path / "contacted").read_text() == ""


def test_guard_records_contacted_addresses(tmp_path):
    script = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"
    subprocess.run([sys.executable, "-c", script], env=guarded(tmp_path), check=False)
    assert (tmp_path / "contacted").read_text() == "socket.connect ('192.0.2.1', 9)\n"
