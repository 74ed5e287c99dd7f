"""Run TFX executors in separate processes, forked from a server process that has already imported everything.

Importing TFX and TensorFlow takes longer than most components run. Therefore, entering `ExecutorProcesses` forks a
server process, which imports the modules and forks a child for each executor. Every executor starts in the same state,
and its memory is freed when it ends. When the parent process ends for any reason, the kernel kills the server and its
children.
"""

import contextlib
import gc
import importlib
import os
import pickle
import resource
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple, NoReturn

from tfx.orchestration.portable.beam_executor_operator import BeamExecutorOperator
from tfx.orchestration.portable.data_types import ExecutionInfo
from tfx.orchestration.portable.python_executor_operator import PythonExecutorOperator
from tfx.proto.orchestration.executable_spec_pb2 import BeamExecutableSpec, PythonClassExecutableSpec
from tfx.proto.orchestration.execution_result_pb2 import ExecutorOutput

from components import progress
from serving.local.child_process import die_with_parent

_OPERATORS = {PythonClassExecutableSpec: PythonExecutorOperator, BeamExecutableSpec: BeamExecutorOperator}


class ExecutorDiedError(RuntimeError):
    """The process of an executor was killed or crashed before the executor returned."""


class Usage(NamedTuple):
    """Resources that an executor used, with those of the processes that it started.

    Attributes:
        cpu_seconds: CPU time in seconds, summed over all cores.
        peak_memory: Largest resident memory in bytes of one of these processes. It includes TensorFlow and TFX, which
            the components of a run share.
    """

    cpu_seconds: float
    peak_memory: int


class Execution(NamedTuple):
    """A completed executor.

    Attributes:
        output: What the executor returned.
        usage: Resources that it used.
    """

    output: ExecutorOutput
    usage: Usage


class ExecutorProcesses:
    """Context manager that runs the server process; leaving it kills the executors that are still running.

    The executors have a folder for temporary files, which is then deleted, because TensorFlow and Beam leave files.

    Args:
        modules: Modules to import before the first executor runs.
    """

    def __init__(self, modules: Iterable[str] = ()):
        self._modules = tuple(modules)

    def __enter__(self) -> "ExecutorProcesses":
        self._temporary = tempfile.TemporaryDirectory(prefix="catbreeds-", ignore_cleanup_errors=True)
        self._requests, server_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_requests:

            def serve() -> None:
                self._requests.close()  # otherwise the server would not notice that the parent closes its end
                os.environ["TMPDIR"] = tempfile.tempdir = self._temporary.name
                _serve(server_requests, self._modules)

            self._server_pid = _fork(serve)
        return self

    def __exit__(self, *_) -> None:
        self._requests.close()
        os.waitpid(self._server_pid, 0)
        self._temporary.cleanup()

    def run(
        self,
        spec: PythonClassExecutableSpec | BeamExecutableSpec,
        execution: ExecutionInfo,
        log: Path,
        on_progress: progress.Listener,
    ) -> Execution:
        """Run one executor. Several threads may call this at the same time.

        Args:
            spec: Specification of the executor.
            execution: Inputs, outputs and parameters of the executor.
            log: File for the output of the executor.
            on_progress: Listener for the executor's progress reports; see `components.progress`.

        Raises:
            Exception: If the executor raised it; `log` has its traceback.
            ExecutorDiedError: If the process of the executor was killed or crashed.
        """
        connection, executor_connection = Pipe()
        with connection:
            with executor_connection:
                socket.send_fds(self._requests, [b"run"], [executor_connection.fileno()])
            try:
                connection.send((spec, execution.to_proto(), str(log)))
                while True:
                    kind, value = connection.recv()
                    if kind == "progress":
                        on_progress(*value)
                    elif kind == "raised":
                        raise value
                    else:
                        return value
            except (EOFError, ConnectionError):
                raise ExecutorDiedError(
                    "its process was killed or crashed. If the machine ran out of memory, run fewer components in "
                    "parallel: --set workers=1"
                ) from None


def _fork(target: Callable[[], None]) -> int:
    """Call `target` in a child process, which ends when `target` returns or this process ends; return its PID."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    if pid := os.fork():
        return pid
    try:
        die_with_parent(parent)
        target()
    except BaseException:
        traceback.print_exc()
    _exit()


def _exit() -> NoReturn:
    """End this process without the exit handlers, which belong to the process that it was forked from."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _serve(requests: socket.socket, modules: Iterable[str]) -> None:
    """Fork a process for each request, until the parent closes its end of the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and then ends this process
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    # Without this, garbage collection would visit, and so copy, all imported modules in each child (gain: "frozen
    # executor" of benchmarks/optimizations.py).
    gc.freeze()
    while True:
        _, descriptors, _, _ = socket.recv_fds(requests, 16, 1)
        if not descriptors:
            return
        connection = Connection(descriptors[0])
        _fork(lambda connection=connection: _execute(connection))
        connection.close()


def _execute(connection: Connection) -> None:
    """Receive an executor from `connection`, run it, and send its progress reports and its result back."""
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # otherwise components could not wait for the processes that they start
    spec, invocation, log = connection.recv()
    sys.stdout = sys.stderr = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (stays open until the process ends)
    for descriptor in (1, 2):  # C++ libraries write to the file descriptors
        os.dup2(sys.stdout.fileno(), descriptor)
    lock = threading.Lock()  # Beam's workers are threads, and all may report

    def report(unit: str, done: int, total: int | None) -> None:
        with lock:
            connection.send(("progress", (unit, done, total)))

    progress.set_listener(report)
    try:
        output = _OPERATORS[type(spec)](spec).run_executor(ExecutionInfo.from_proto(invocation))
        result = "returned", Execution(output, _usage())
    except Exception as error:
        traceback.print_exc()
        result = "raised", _to_picklable(error)
    with lock:
        connection.send(result)


def _usage() -> Usage:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Usage(
        sum(usage.ru_utime + usage.ru_stime for usage in usages),
        # Not the sum: until a new process executes its program, it counts the memory of this process as its own.
        1024 * max(usage.ru_maxrss for usage in usages),
    )


def _to_picklable(error: Exception) -> Exception:
    """Return the error itself, or a RuntimeError with the same message if another process could not unpickle it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # depends on the class of the error
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
