"""Programs start in order, stop together, and never outlive the process that started them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.local import processes
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

# Starts HTTP servers on the given ports; port 0 starts a program that prints an error and exits.
PARENT = """
import os, sys
from pathlib import Path
from serving.local.processes import Program, ProgramError, Supervisor

FAILING = ["-c", "print('cannot load'); raise SystemExit(3)"]
try:
    with Supervisor() as supervisor:
        for number, port in enumerate(sys.argv[1:]):
            command = [sys.executable, *(["-m", "http.server", port] if port != "0" else FAILING)]
            ready_url = f"http://127.0.0.1:{port}/{os.environ.get('PAGE', '')}"
            log = Path(f"{number}.log")
            supervisor.start(Program(f"server {number}", command, ready_url, log=log, fatal_statuses=(404,)))
        print("all started", flush=True)
        supervisor.watch()
except ProgramError as error:
    sys.exit(str(error))
print("stopped normally")
"""


class Parent:
    """A process that runs HTTP servers on these ports."""

    def __init__(self, folder: Path, *ports: int):
        self.output, self.errors = folder / "output", folder / "errors"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, *map(str, ports)],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
                stdout=output,
                stderr=errors,
            )

    def children(self) -> list[psutil.Process]:
        """Return the started servers in order."""
        eventually(lambda: "all started" in self.output.read_text() or self.process.poll() is not None)
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Parent]]:
    started = []

    def start(*ports: int) -> Parent:
        started.append(Parent(tmp_path, *ports))
        return started[-1]

    yield start
    for parent in started:
        parent.process.kill()
        parent.process.wait()


def have_ended(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_all_programs_normally(start, number):
    parent = start(free_port(), free_port())
    children = parent.children()
    assert len(children) == 2
    parent.process.send_signal(number)
    assert parent.process.wait(DEADLINE) == 0
    assert parent.output.read_text().endswith("stopped normally\n")
    assert have_ended(children)


def test_killed_parent_leaves_no_program_running(start):
    parent = start(free_port(), free_port())
    children = parent.children()
    assert len(children) == 2
    parent.process.kill()
    eventually(lambda: have_ended(children))


def test_program_that_dies_stops_all_others_and_the_error_contains_its_name_and_the_end_of_its_log(start):
    parent = start(free_port(), free_port())
    children = parent.children()
    children[0].send_signal(signal.SIGKILL)
    assert parent.process.wait(DEADLINE) == 1
    errors = parent.errors.read_text()
    assert "server 0 was killed by SIGKILL; end of 0.log:" in errors
    assert "GET / HTTP" in errors
    assert have_ended(children)


def test_fatal_status_fails_without_waiting_for_the_timeout(start, monkeypatch):
    monkeypatch.setenv("PAGE", "nowhere")
    port = free_port()
    parent = start(port)
    assert parent.process.wait(DEADLINE) == 1
    assert (
        f"server 0 cannot become ready: http://127.0.0.1:{port}/nowhere returned 404 File not found; end of 0.log:"
        in parent.errors.read_text()
    )


SLOW_SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    codes = [503, 503, 503]

    def do_GET(self):
        self.send_error(self.codes.pop() if self.codes else 200)

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_start_prints_why_a_program_is_not_ready(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(processes, "_PROGRESS_SECONDS", 0)
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = processes.Program(
        "page", [sys.executable, "-c", SLOW_SERVER, str(port)], url, log=tmp_path / "log", fatal_statuses=(404,)
    )
    with processes.Supervisor() as supervisor:
        supervisor.start(program)
    assert f"s: {url} returned 503 Service Unavailable\n" in capsys.readouterr().out


def test_program_that_does_not_start_stops_the_earlier_ones_and_prevents_the_later_ones(start, tmp_path):
    ports = free_port(), free_port()
    parent = start(ports[0], 0, ports[1])
    assert parent.process.wait(DEADLINE) == 1
    assert "server 1 exited with code 3; end of 1.log:\n  cannot load" in parent.errors.read_text()
    assert (tmp_path / "0.log").exists()
    assert not (tmp_path / "2.log").exists()


SINGLE_PROGRAM_PARENT = """
import sys, time
from serving.local.processes import Program, start

port = sys.argv[1]
start(Program("server", [sys.executable, "-m", "http.server", port], f"http://127.0.0.1:{port}/"), timeout=60)
print("all started", flush=True)
time.sleep(600)
"""


def test_single_program_is_killed_with_its_parent(start, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PARENT", SINGLE_PROGRAM_PARENT)
    parent = start(free_port())
    children = parent.children()
    assert len(children) == 1
    parent.process.kill()
    eventually(lambda: have_ended(children))


def test_single_program_that_is_not_ready_in_time_is_killed(tmp_path):
    pid = tmp_path / "pid"
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = processes.Program("server", [sys.executable, "-c", code], f"http://127.0.0.1:{free_port()}/")
    with pytest.raises(processes.ProgramError, match="server is not ready after 3 s: http"):
        processes.start(program, timeout=3)
    assert not psutil.pid_exists(int(pid.read_text()))


def test_stop_signals_are_not_blocked_in_programs(start):
    parent = start(free_port())
    (child,) = parent.children()
    status = Path(f"/proc/{child.pid}/status").read_text()
    blocked = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16)
    assert not blocked & (1 << (signal.SIGTERM - 1) | 1 << (signal.SIGINT - 1))
