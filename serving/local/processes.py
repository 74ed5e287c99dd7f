"""Start programs on this machine, wait until they are ready, and stop them.

`start` runs a single program. A `Supervisor` runs several and stops them together. In both cases, the kernel kills the
programs when this process ends (Linux).
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from serving import http_client
from serving.local.child_process import STOP_SIGNALS, bound_command

_LOG_LINES = 20
_POLL_SECONDS = 0.2
_READY_SECONDS = 600  # a large model on a slow disk
_PROGRESS_SECONDS = 15
_GRACE_SECONDS = 40  # the servers give requests in flight 30 s


class ProgramError(RuntimeError):
    """A program ended or was not ready in time; the message contains the end of its log."""


class StopRequested(Exception):
    """SIGTERM or SIGINT was received; `Supervisor` handles this exception."""


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        name: Name for messages.
        command: Command line. Only its process is stopped, so it should not start other processes.
        ready_url: URL that returns a 2xx status once the program is ready.
        environment: Environment variables in addition to those of this process.
        log: File for standard output and error, which is overwritten; None to share those of this process.
        fatal_statuses: HTTP statuses of `ready_url` that mean the program will never be ready, such as 404 for a
            program that loads nothing before it listens.
    """

    name: str
    command: Sequence[str]
    ready_url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    fatal_statuses: Collection[int] = ()


class Process:
    """A running program. The kernel kills it when the thread that started it ends (Linux)."""

    def __init__(self, program: Program):
        self.program = program
        if program.log:
            program.log.parent.mkdir(parents=True, exist_ok=True)
        with open(program.log or os.devnull, "wb") as log:
            output = {"stdout": log, "stderr": log} if program.log else {}
            self._process = subprocess.Popen(
                bound_command(program.command),
                env={**os.environ, **program.environment},
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal reaches only this process, which stops the program.
                process_group=0,
                **output,
            )

    def require_running(self) -> None:
        """Check that the program is still running.

        Raises:
            ProgramError: If the program has ended.
        """
        if (code := self._process.poll()) is not None:
            reason = f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
            raise ProgramError(f"{self.program.name} {reason}{_log_tail(self.program)}")

    def wait_until_ready(
        self, timeout: float, wait: Callable[[float], None] | None = None, show_progress: bool = False
    ) -> float:
        """Wait until the program is ready.

        Args:
            timeout: Time limit in seconds.
            wait: Function that sleeps for a number of seconds and raises an exception to stop waiting.
            show_progress: Whether to print the reason every few seconds while the program is not ready.

        Returns:
            The number of seconds waited.

        Raises:
            ProgramError: If the program ends, is not ready in time, or returns a status that is fatal.
        """
        started = reported = time.monotonic()
        while reason := unready_reason(self.program):
            if wait:
                wait(_POLL_SECONDS)
            else:
                time.sleep(_POLL_SECONDS)
            self.require_running()
            now = time.monotonic()
            if now - started > timeout:
                raise ProgramError(
                    f"{self.program.name} is not ready after {timeout} s: {reason}{_log_tail(self.program)}"
                )
            if show_progress and now - reported >= _PROGRESS_SECONDS:
                reported = now
                print(f"  {self.program.name:<12} not ready after {now - started:.0f} s: {reason}", flush=True)
        return time.monotonic() - started

    def stop(self, grace: float = _GRACE_SECONDS, wait: Callable[[float], None] = time.sleep) -> None:
        """Terminate the program, and kill it if it is still running after the grace period.

        Args:
            grace: Grace period in seconds.
            wait: Function that sleeps for a number of seconds; if it raises an exception, the program is killed at
                once.
        """
        self._process.terminate()
        deadline = time.monotonic() + grace
        try:
            while self._process.poll() is None and time.monotonic() < deadline:
                wait(min(_POLL_SECONDS, grace))
        finally:
            self._process.kill()
            self._process.wait()


def start(program: Program, timeout: float) -> Process:
    """Start a program and wait until it is ready.

    Args:
        program: Program to start.
        timeout: Time limit in seconds.

    Raises:
        ProgramError: If the program ends, is not ready in time, or returns a status that is fatal.
    """
    process = Process(program)
    try:
        process.wait_until_ready(timeout)
    except BaseException:
        process.stop(grace=0)
        raise
    return process


class Supervisor:
    """Context manager that runs programs, in the main thread; SIGTERM and SIGINT end its `with` block normally.

    At the end of the block, it stops the programs in reverse order. Another signal during that time kills the remaining
    programs.
    """

    def __init__(self):
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        # The signals are blocked and polled, so that none interrupts the start or the stop of a program.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        grace = _GRACE_SECONDS
        try:
            for process in reversed(self._processes):
                try:
                    process.stop(grace, _wait_for_signal)
                except StopRequested:
                    grace = 0
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return kind is StopRequested

    def start(self, program: Program) -> float:
        """Start a program and wait until it is ready.

        Returns:
            The number of seconds waited.

        Raises:
            ProgramError: If this or another program ends, or if this one is not ready in time or returns a status that
                is fatal.
            StopRequested: If a stop signal arrives. Do not catch it inside the block.
        """
        process = Process(program)
        self._processes.append(process)
        return process.wait_until_ready(_READY_SECONDS, self._wait, show_progress=True)

    def watch(self) -> None:
        """Wait until a program ends or a stop signal arrives, and raise the exception that `start` documents."""
        while True:
            self._wait(1)

    def _wait(self, seconds: float) -> None:
        """Wait, then raise an exception if a signal has arrived or a program has ended."""
        _wait_for_signal(seconds)
        for process in self._processes:
            process.require_running()


def unready_reason(program: Program) -> str:
    """Return why `program` is not ready yet; an empty string if it is ready.

    Raises:
        ProgramError: If the program returns a fatal status.
    """
    try:
        with http_client.client(timeout=5) as client:
            response = client.get(program.ready_url)
    except httpx.HTTPError as error:
        return f"{program.ready_url}: {error}"
    if response.is_success:
        return ""
    reason = f"{program.ready_url} returned {response.status_code} {response.reason_phrase}"
    if response.status_code in program.fatal_statuses:
        raise ProgramError(f"{program.name} cannot become ready: {reason}{_log_tail(program)}")
    return reason


def _wait_for_signal(seconds: float) -> None:
    """Sleep; raise StopRequested if a stop signal arrives."""
    if signal.sigtimedwait(STOP_SIGNALS, seconds):
        raise StopRequested


def _log_tail(program: Program) -> str:
    if not program.log:
        return ""
    lines = program.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"; end of {program.log}:", *(f"  {line}" for line in lines)])
