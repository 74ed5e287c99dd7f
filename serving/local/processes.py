"""Programs that serve together: started one after the other, watched, and stopped together.

None of them outlives this process, however it ends: the kernel kills them when it is gone (Linux).
"""

import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from serving import http_client
from serving.local.child_process import die_with

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOG_LINES = 20
_LOOK_SECONDS = 0.2
_READY_SECONDS = 600  # a large model on a slow disk
_TELL_SECONDS = 15
_GRACE_SECONDS = 40  # the servers give requests in flight 30 s


class ProgramError(RuntimeError):
    """A program ended, or could not be used in time; the message has the end of its log."""


class Stopped(Exception):
    """Somebody told this process to stop; `Programs` catches it."""


@dataclass(frozen=True)
class Program:
    """What is run.

    Attributes:
        name: for people.
        command: of the process; it is killed alone, so it should have no children.
        ready: URL that answers 2xx as soon as the program can be used.
        environment: variables beside those of this process.
        log: file for what it prints, written anew; None: it prints where this process does.
        never: HTTP status codes of `ready` by which it will never be ready, such as 404 where nothing has to load.
    """

    name: str
    command: Sequence[str]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    never: Collection[int] = ()


class Programs:
    """Runs programs inside its `with` block, in the main thread; SIGTERM and SIGINT end the block in good order.

    At the end the programs are stopped, the last one first; another signal meanwhile kills those that are left.
    """

    def __init__(self):
        self._running: list[tuple[Program, subprocess.Popen]] = []

    def __enter__(self) -> Self:
        # Blocked, they wait until they are looked for: none can come in the middle of a start or of the end.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        try:
            patient = True
            for _, process in reversed(self._running):
                patient = _stop(process, patient)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return kind is Stopped

    def start(self, program: Program) -> float:
        """Starts a program and waits until it can be used.

        Returns:
            The seconds that it took.

        Raises:
            ProgramError: this or another one has ended, it cannot be used in time, or it answers wrongly.
            Stopped: not to be caught inside the block.
        """
        started = time.monotonic()
        self._running.append((program, self._spawn(program)))
        told = started
        while answer := missing(program):
            self._look(_LOOK_SECONDS)
            now = time.monotonic()
            if now - started > _READY_SECONDS:
                raise ProgramError(
                    f"{program.name} cannot be used after {_READY_SECONDS} s: {answer}{_end_of_log(program)}"
                )
            if now - told >= _TELL_SECONDS:
                told = now
                print(f"  {program.name:<12} not ready after {now - started:.0f} s: {answer}", flush=True)
        return time.monotonic() - started

    def watch(self) -> None:
        """Returns never; see `start` for what it raises."""
        while True:
            self._look(1)

    def _look(self, seconds: float) -> None:
        """Waits, then looks whether anything has ended or shall end."""
        if signal.sigtimedwait(_STOP_SIGNALS, seconds):
            raise Stopped
        for program, process in self._running:
            if (code := process.poll()) is not None:
                how = f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
                raise ProgramError(f"{program.name} has ended {how}{_end_of_log(program)}")

    def _spawn(self, program: Program) -> subprocess.Popen:
        parent, mask = os.getpid(), self._mask

        def bind() -> None:
            die_with(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        if program.log:
            program.log.parent.mkdir(parents=True, exist_ok=True)
        with open(program.log or os.devnull, "wb") as log:
            output = {"stdout": log, "stderr": log} if program.log else {}
            return subprocess.Popen(
                program.command,
                env={**os.environ, **program.environment},
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal is for this process, which stops the others.
                process_group=0,
                preexec_fn=bind,  # safe: there are no threads
                **output,
            )


def missing(program: Program) -> str:
    """What `program` answers instead of being ready; "" if it is.

    Raises:
        ProgramError: it never will be.
    """
    try:
        with http_client.client(timeout=5) as client:
            response = client.get(program.ready)
    except httpx.HTTPError as error:
        return f"{program.ready}: {error}"
    if response.is_success:
        return ""
    answer = f"{program.ready} answers {response.status_code} {response.reason_phrase}"
    if response.status_code in program.never:
        raise ProgramError(f"{program.name} answers wrongly: {answer}{_end_of_log(program)}")
    return answer


def _stop(process: subprocess.Popen, patient: bool) -> bool:
    """Ends a process; returns whether the next one may take its time, too."""
    process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    while patient and process.poll() is None and time.monotonic() < deadline:
        patient = signal.sigtimedwait(_STOP_SIGNALS, _LOOK_SECONDS) is None
    process.kill()
    process.wait()
    return patient


def _end_of_log(program: Program) -> str:
    if not program.log:
        return ""
    lines = program.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"; the end of {program.log}:", *(f"  {line}" for line in lines)])
