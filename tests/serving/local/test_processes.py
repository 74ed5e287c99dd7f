"""What programs that run together promise: an order, one end for all, and no orphans."""

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

# Starts servers; of one whose port is 0, nothing but a complaint.
PARENT = """
import os, sys
from pathlib import Path
from serving.local.processes import Program, ProgramError, Programs

FAILING = ["-c", "print('cannot load'); raise SystemExit(3)"]
try:
    with Programs() as programs:
        for number, port in enumerate(sys.argv[1:]):
            command = [sys.executable, *(["-m", "http.server", port] if port != "0" else FAILING)]
            ready = f"http://127.0.0.1:{port}/{os.environ.get('PAGE', '')}"
            programs.start(Program(f"server {number}", command, ready, log=Path(f"{number}.log"), never=(404,)))
        print("all started", flush=True)
        programs.watch()
except ProgramError as error:
    sys.exit(str(error))
print("ended in good order")
"""


class Parent:
    """A process that runs servers on these ports."""

    def __init__(self, folder: Path, *ports: int):
        self.output, self.errors = folder / "output", folder / "errors"
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PARENT, *map(str, ports)],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=output,
                stderr=errors,
            )

    def children(self) -> list[psutil.Process]:
        """In the order of their start."""
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


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_good_order(start, number):
    parent = start(free_port(), free_port())
    children = parent.children()
    assert len(children) == 2
    parent.process.send_signal(number)
    assert parent.process.wait(DEADLINE) == 0
    assert parent.output.read_text().endswith("ended in good order\n")
    assert gone(children)


def test_none_outlives_a_parent_that_is_killed(start):
    parent = start(free_port(), free_port())
    children = parent.children()
    assert len(children) == 2
    parent.process.kill()
    eventually(lambda: gone(children))


def test_one_that_dies_ends_all_and_is_named_with_the_end_of_its_log(start):
    parent = start(free_port(), free_port())
    children = parent.children()
    children[0].send_signal(signal.SIGKILL)
    assert parent.process.wait(DEADLINE) == 1
    errors = parent.errors.read_text()
    assert "server 0 has ended by SIGKILL; the end of 0.log:" in errors
    assert "GET / HTTP" in errors
    assert gone(children)


def test_one_that_answers_wrongly_is_not_waited_for(start, monkeypatch):
    monkeypatch.setenv("PAGE", "nowhere")
    port = free_port()
    parent = start(port)
    assert parent.process.wait(DEADLINE) == 1
    assert (
        f"server 0 answers wrongly: http://127.0.0.1:{port}/nowhere answers 404 File not found; the end of 0.log:"
        in parent.errors.read_text()
    )


SLOW = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    codes = [503, 503, 503]

    def do_GET(self):
        self.send_error(self.codes.pop() if self.codes else 200)

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_while_one_is_waited_for_what_it_answers_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(processes, "_TELL_SECONDS", 0)
    url = f"http://127.0.0.1:{(port := free_port())}"
    program = processes.Program(
        "page", [sys.executable, "-c", SLOW, str(port)], url, log=tmp_path / "log", never=(404,)
    )
    with processes.Programs() as programs:
        programs.start(program)
    assert f"s: {url} answers 503 Service Unavailable\n" in capsys.readouterr().out


def test_one_that_does_not_start_ends_those_before_it_and_the_later_never_start(start, tmp_path):
    ports = free_port(), free_port()
    parent = start(ports[0], 0, ports[1])
    assert parent.process.wait(DEADLINE) == 1
    assert "server 1 has ended with code 3; the end of 1.log:\n  cannot load" in parent.errors.read_text()
    assert (tmp_path / "0.log").exists()
    assert not (tmp_path / "2.log").exists()
