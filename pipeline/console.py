"""What a person sees of a run: a line for each step, a bar inside the long ones, everything else in a log."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Column

if TYPE_CHECKING:
    from pipeline.runners.local import NodeRun


def _whole() -> Column:
    """A column of numbers; where the terminal is narrow the bar beside it gives way."""
    return Column(no_wrap=True)


def console_on(stream: TextIO) -> Console:
    """A console; piped output has no width of its own, and wrapping would break paths. `:cat:` stays a name."""
    return Console(file=stream, width=None if stream.isatty() else 120, emoji=False)


def print_error(message: object) -> None:
    """Prints a line on standard error; it reaches people also inside `noise_to`."""
    print(message, file=_standard_error or sys.stderr, flush=True)


_standard_error: TextIO | None = None  # of this process, while `noise_to` sends it to a log


@contextlib.contextmanager
def noise_to(log: Path) -> Iterator[Console]:
    """Sends all that this process prints, C++ libraries included, to `log`.

    The console given still reaches people, as does `print_error`.
    """
    global _standard_error
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(log, "a", encoding="utf-8") as file, _copy(1, sys.stdout) as people, _copy(2, sys.stderr) as errors:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        outer, _standard_error = _standard_error, errors
        try:
            yield console_on(people)
        finally:
            _standard_error = outer
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, stream in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, stream)
                os.close(descriptor)


def _copy(descriptor: int, stream: TextIO) -> TextIO:
    """Another stream to where `descriptor` leads now; what the encoding of `stream` lacks is written as an escape."""
    return os.fdopen(os.dup(descriptor), "w", encoding=stream.encoding or "utf-8", errors="backslashreplace")


class RunView:
    """Shows a run: a line for each component that is done, on a terminal also what is running and how far it is.

    It is the listener of `pipeline.runners.local.run`.

    Args:
        console: where to show it.
        logs: folder of the components' logs.
    """

    def __init__(self, console: Console, logs: Path):
        self._console, self._logs = console, logs
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=_whole()),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(table_column=_whole()),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done = self._total = 0

    def __enter__(self) -> "RunView":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    def starting(self, what: str) -> None:
        """Shows `what` as running until the first component starts."""
        self._tasks[what] = self._live.add_task(escape(what), total=None, what="")

    def on_start(self, node_id: str, total: int) -> None:
        """A component starts, one of `total`."""
        if not self._total:
            self._remove(*self._tasks)
        self._total = total
        self._tasks[node_id] = self._live.add_task(escape(node_id), total=None, what="")

    def on_progress(self, node_id: str, what: str, done: int, total: int | None) -> None:
        """`done` of `total` units of `what` are finished in a component."""
        self._live.update(self._tasks[node_id], completed=done, total=total, what=what)

    def on_finish(self, run: "NodeRun") -> None:
        """A component is done."""
        self._remove(run.node_id)
        self._done += 1
        how = "[dim]cached[/]" if run.cached else "run   "
        self._console.print(
            rf"\[{self._done:>2}/{self._total}] {run.node_id:<28} {how} {run.seconds:>7.1f} s", highlight=False
        )

    def on_failure(self, node_id: str, cause: BaseException, running: list[str]) -> None:
        """A component failed; those in `running` are completed before the run ends."""
        self._remove(node_id)
        self._say(f"{node_id} failed: {_in_short(cause)}", style="red")
        self._say(f"Log: {self._logs / node_id}.log")
        if running:
            self._say(f"Waiting for {', '.join(running)} to complete.")

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _remove(self, *names: str) -> None:
        for name in names:
            self._live.remove_task(self._tasks.pop(name))


def _in_short(error: BaseException) -> str:
    """An error for people: ours in full, anybody else's by its kind and first lines."""
    from components.errors import DataError, WeightsError

    if isinstance(error, DataError | WeightsError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n".join(lines[:3])


class TransferView:
    """Follows files as they come and are unpacked: bars on a terminal; notes are lines everywhere."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(table_column=_whole()),
            TransferSpeedColumn(table_column=_whole()),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current: TaskID | None = None

    def __enter__(self) -> "TransferView":
        self._live.start()
        return self

    def __exit__(self, *_) -> None:
        self._live.stop()

    @property
    def on_terminal(self) -> bool:
        """Whether bars are shown."""
        return self._console.is_terminal

    def start(self, name: str, done: int, total: int | None) -> None:
        """The file `name` comes, of which `done` of `total` bytes are there."""
        if name not in self._tasks:
            self._tasks[name] = self._live.add_task(escape(name), total=None)
            if not self.on_terminal:
                self.note(f"{name}: {f'{total / 1e6:.1f} MB' if total else 'of unknown size'}")
        self._current = self._tasks[name]
        self._live.update(self._current, completed=done, total=total)

    def advance(self, count: int) -> None:
        """So many more bytes of it came."""
        self._live.update(self._current, advance=count)

    def reading(self, path: Path) -> BinaryIO:
        """The file, opened; how far it has been read is shown."""
        return self._live.open(path, "rb", description=escape(f"reading {path.name}"))

    def note(self, text: str) -> None:
        """Something that people should know."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
