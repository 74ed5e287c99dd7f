"""Runs TFX's executors in processes of their own, forked from one that has imported everything already.

Importing TFX and TensorFlow takes longer than most components work. So the process that enters `ExecutorProcesses`
imports first; a fork of it, the server, waits for requests and forks once more for each executor. Each starts in
the same state, and its memory is freed when it ends. The kernel kills the server and its children with the process that
started them, however that ends.
"""

import contextlib
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NoReturn

from tfx.orchestration.portable.beam_executor_operator import BeamExecutorOperator
from tfx.orchestration.portable.data_types import ExecutionInfo
from tfx.orchestration.portable.python_executor_operator import PythonExecutorOperator
from tfx.proto.orchestration.executable_spec_pb2 import BeamExecutableSpec, PythonClassExecutableSpec
from tfx.proto.orchestration.execution_result_pb2 import ExecutorOutput

from components import progress
from serving.local.child_process import die_with_parent

_OPERATORS = {PythonClassExecutableSpec: PythonExecutorOperator, BeamExecutableSpec: BeamExecutorOperator}


class ExecutorDiedError(RuntimeError):
    """The process of an executor ended before the executor returned."""


class ExecutorProcesses:
    """A context manager; leaving it kills the executors that are still running.

    Args:
        modules: imported before the first executor runs.
    """

    def __init__(self, modules: Iterable[str] = ()):
        self._modules = tuple(modules)

    def __enter__(self) -> "ExecutorProcesses":
        self._requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with requests:

            def work() -> None:
                self._requests.close()  # the server's end must see when this process closes it
                _serve(requests, self._modules)

            self._server = _fork(work)
        return self

    def __exit__(self, *_) -> None:
        self._requests.close()
        os.waitpid(self._server, 0)

    def run(
        self,
        spec: PythonClassExecutableSpec | BeamExecutableSpec,
        execution: ExecutionInfo,
        log: Path,
        on_progress: progress.Listener,
    ) -> ExecutorOutput:
        """Runs one executor; several threads may do so at a time.

        Args:
            spec: of the executor.
            execution: its inputs, outputs and parameters.
            log: file that receives what the executor prints.
            on_progress: receives the executor's `components.progress` reports.

        Raises:
            Exception: what the executor raised; its traceback is in `log`.
            ExecutorDiedError: its process was killed, or crashed.
        """
        ours, theirs = Pipe()
        with ours:
            with theirs:
                socket.send_fds(self._requests, [b"run"], [theirs.fileno()])
            try:
                ours.send((spec, execution.to_proto(), str(log)))
                while True:
                    kind, value = ours.recv()
                    if kind == "progress":
                        on_progress(*value)
                    elif kind == "raised":
                        raise value
                    else:
                        return value
            except (EOFError, ConnectionError):
                raise ExecutorDiedError(
                    "its process was killed or crashed. If memory ran out, run fewer components at a time: "
                    "--set workers=1"
                ) from None


def _fork(work: Callable[[], None]) -> int:
    """Calls `work` in a new process that ends with it, or with this one; gives the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    if pid := os.fork():
        return pid
    try:
        die_with_parent(parent)
        work()
    except BaseException:
        traceback.print_exc()
    _exit()


def _exit() -> NoReturn:
    """Ends this process without the clean-up that belongs to the one it was forked from."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _serve(requests: socket.socket, modules: Iterable[str]) -> None:
    """Forks a process for each request, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that asks; it ends this one
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    # What is imported is never garbage: without this the collector would visit, and so copy, all of it in each child.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)  # tracing makes many objects and little garbage
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 16, 1)
        if not descriptors:
            return
        connection = Connection(descriptors[0])
        _fork(lambda connection=connection: _execute(connection))
        connection.close()


def _execute(connection: Connection) -> None:
    """Runs the executor that `connection` asks for, and sends its reports and its end there."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or no component could wait for a process that it starts
    spec, invocation, log = connection.recv()
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open until the end)
    for descriptor in (1, 2):  # C++ libraries write there
        os.dup2(sys.stdout.fileno(), descriptor)
    lock = threading.Lock()  # Beam's workers are threads

    def report(what: str, done: int, total: int | None) -> None:
        with lock:
            connection.send(("progress", (what, done, total)))

    progress.listen(report)
    try:
        answer = "returned", _OPERATORS[type(spec)](spec).run_executor(ExecutionInfo.from_proto(invocation))
    except Exception as error:
        traceback.print_exc()
        answer = "raised", _portable(error)
    with lock:
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """The error as another process can read it: itself, or one of the same words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # what can go wrong is up to the class of the error
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
