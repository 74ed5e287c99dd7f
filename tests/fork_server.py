"""Start processes in milliseconds, as forks of a process that has already imported TensorFlow and TFX.

`Popen` runs the commands of this project whose imports take seconds: `catbreeds ...`,
`python -m serving.model_server ...`, `python -m pipeline.runners.kubeflow.entrypoint ...`. The processes have their own
ID, exit code, signals, standard streams, environment and working directory. Tests of environment variables that modules
read at import time, and of which modules a process imports, must use `subprocess` instead.

Each pytest process starts one server when a test first needs it; the server exits with the pytest process.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

MODULES = (
    "pipeline.graph",
    "pipeline.runners.local",
    "pipeline.modules.training",
    "pipeline.modules.tuning",
    "pipeline.run_context",
    "pipeline.results.report",
    "pipeline.results.run_history",
    "pipeline.results.lineage",
    "pipeline.runners.kubeflow.compiler",
    "pipeline.runners.kubeflow.entrypoint",
    "pipeline.cli",
    "components.reporting.report_page",
    "serving.model_server.server",
)
_ROOT = Path(__file__).parents[1]


@functools.cache
def _start_server() -> str:
    """Start the server and return the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    path = os.path.join(folder.name, "socket")
    command = [sys.executable, "-m", "tests.fork_server", path]
    process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n", "the fork server did not start"

    def stop() -> None:
        process.stdin.close()  # the server exits when its standard input is closed
        process.wait()
        folder.cleanup()

    atexit.register(stop)
    return path


class Popen(subprocess.Popen):
    """Like `subprocess.Popen`, for `[catbreeds, ...]` and `[python, "-m", module, ...]`."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
        """Start the process; `subprocess.Popen.__init__` calls this with the ends of the pipes that it created."""
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = others[3:9]
        child_ends = (p2cread, c2pwrite, errwrite)
        request = {
            "args": list(map(str, args)),
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_start_server())
        message = json.dumps(request).encode()
        descriptors = [standard if end == -1 else end for standard, end in enumerate(child_ends)]
        socket.send_fds(self._connection, [len(message).to_bytes(8, "big")], descriptors)
        self._connection.sendall(message)
        self.pid = int.from_bytes(_receive(self._connection, 8), "big")
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _internal_poll(self, *_, **__):
        self._await_exit(0)
        return self.returncode

    def _wait(self, timeout):
        self._await_exit(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _await_exit(self, timeout: float | None) -> None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int.from_bytes(_receive(self._connection, 8), "big", signed=True)
                    self._connection.close()


def run(args, **options) -> subprocess.CompletedProcess:
    """Like `subprocess.run(args, capture_output=True, text=True)`."""
    timeout = options.pop("timeout", None)
    with Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        block = connection.recv(count - len(data))
        if not block:
            raise ConnectionError("the fork server closed the connection")
        data += block
    return data


def _serve(path: str) -> None:
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # otherwise the first garbage collection of each child would copy all these objects
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(64)
        for descriptor in (listener, 0, read):
            selector.register(descriptor, selectors.EVENT_READ)
        os.write(1, b"ready\n")
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if 0 in ready:
                return
            if listener in ready:
                connection, _ = listener.accept()
                pid = _fork(connection)
                connection.sendall(pid.to_bytes(8, "big"))
                children[pid] = connection
            if read in ready:
                os.read(read, 1024)
            for pid in list(children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    with children.pop(pid) as connection, contextlib.suppress(OSError):
                        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))


def _fork(connection: socket.socket) -> int:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    request = json.loads(_receive(connection, int.from_bytes(header, "big")))
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for standard, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard)
        os.closerange(3, 256)
        code = _run(**request)
    finally:
        os._exit(code)


def _run(args: list[str], cwd: str, env: dict[str, str]) -> int:
    """Run a command as the interpreter does and return its exit code."""
    from pipeline import huge_pages

    os.chdir(cwd)
    tempfile.tempdir = None  # cached, but depends on the environment
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background ignore it by default
    os.environ.clear()
    # With this variable, `catbreeds run` does not restart itself, which would start another server.
    os.environ.update({huge_pages.VARIABLE: huge_pages.VALUE} | env)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1, errors="backslashreplace")
    arguments = args[1:]
    try:
        try:
            if arguments[:1] == ["-m"]:
                sys.argv = arguments[1:]
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = args
                importlib.import_module("pipeline.cli").main()
            code = 0
        except SystemExit as end:
            code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
        code = code if isinstance(code, int) else int(code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code


if __name__ == "__main__":
    from pipeline.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    _serve(sys.argv[1])
