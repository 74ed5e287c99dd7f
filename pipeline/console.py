"""Terminal output: one line per component, progress bars, and the redirection of all other output to a log."""

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


def _number_column() -> Column:
    """Return a column that is never truncated; on a narrow terminal the bar next to it shrinks."""
    return Column(no_wrap=True)


def console_on(stream: TextIO) -> Console:
    """Return a console that does not replace emoji codes, because `:cat:` may be part of a name.

    Piped output has no width, so it gets a fixed one.
    """
    return Console(file=stream, width=None if stream.isatty() else 120, emoji=False)


def print_error(message: object) -> None:
    """Print a line to standard error, also while `noise_to` redirects it."""
    print(message, file=_standard_error or sys.stderr, flush=True)


_standard_error: TextIO | None = None  # the original standard error, while `noise_to` redirects it


@contextlib.contextmanager
def noise_to(log: Path) -> Iterator[Console]:
    """Redirect standard output and standard error of this process, including C++ libraries, to the file `log`.

    The console that it yields, and `print_error`, still write to the original streams.
    """
    global _standard_error
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with (
        open(log, "a", encoding="utf-8") as file,
        _duplicate_stream(1, sys.stdout) as stdout,
        _duplicate_stream(2, sys.stderr) as stderr,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        previous, _standard_error = _standard_error, stderr
        try:
            yield console_on(stdout)
        finally:
            _standard_error = previous
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, stream in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, stream)
                os.close(descriptor)


def _duplicate_stream(descriptor: int, stream: TextIO) -> TextIO:
    """Return a new stream to the current target of `descriptor`; it escapes characters that its encoding lacks."""
    return os.fdopen(os.dup(descriptor), "w", encoding=stream.encoding or "utf-8", errors="backslashreplace")


class RunView:
    """Display of a run: one line per completed component and, on a terminal, a progress bar per running component.

    It implements `pipeline.runners.local.Listener`.

    Args:
        console: Console to print to.
        logs: Folder with the logs of the components.
    """

    def __init__(self, console: Console, logs: Path):
        self._console, self._logs = console, logs
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=_number_column()),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(table_column=_number_column()),
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

    def starting(self, activity: str) -> None:
        """Show an activity until the first component starts."""
        self._tasks[activity] = self._live.add_task(escape(activity), total=None, unit="")

    def on_start(self, node_id: str, total: int) -> None:
        """Show that one of `total` components started."""
        if not self._total:
            self._remove(*self._tasks)
        self._total = total
        self._tasks[node_id] = self._live.add_task(escape(node_id), total=None, unit="")

    def on_progress(self, node_id: str, unit: str, done: int, total: int | None) -> None:
        """Show that a component has processed `done` of `total` units, such as photos."""
        self._live.update(self._tasks[node_id], completed=done, total=total, unit=unit)

    def on_finish(self, run: "NodeRun") -> None:
        """Print the line of a completed component."""
        self._remove(run.node_id)
        self._done += 1
        status = "[dim]cached[/]" if run.cached else "run   "
        memory = f"  {run.usage.peak_memory / 1e9:.1f} GB" if run.usage else ""
        self._console.print(
            rf"\[{self._done:>2}/{self._total}] {run.node_id:<28} {status} {run.seconds:>6.1f} s{memory}",
            highlight=False,
        )

    def on_failure(self, node_id: str, cause: BaseException, running: list[str]) -> None:
        """Print why a component failed; the components in `running` complete before the run ends."""
        self._remove(node_id)
        self._print(f"{node_id} failed: {_short_message(cause)}", style="red")
        self._print(f"Log: {self._logs / node_id}.log")
        if running:
            self._print(f"Waiting for {', '.join(running)} to complete.")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _remove(self, *names: str) -> None:
        for name in names:
            self._live.remove_task(self._tasks.pop(name))


def _short_message(error: BaseException) -> str:
    """Return the message of an error of this project, or the type and the first lines of any other error."""
    from components.errors import DataError, WeightsError

    if isinstance(error, DataError | WeightsError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n".join(lines[:3])


class TransferView:
    """Display of downloads and of reading archives: progress bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(table_column=_number_column()),
            TransferSpeedColumn(table_column=_number_column()),
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
        """Whether progress bars are shown."""
        return self._console.is_terminal

    def start(self, name: str, done: int, total: int | None) -> None:
        """Show that the download of a file starts, or resumes after `done` of `total` bytes."""
        if name not in self._tasks:
            self._tasks[name] = self._live.add_task(escape(name), total=None)
            if not self.on_terminal:
                self.note(f"{name}: {f'{total / 1e6:.1f} MB' if total else 'of unknown size'}")
        self._current = self._tasks[name]
        self._live.update(self._current, completed=done, total=total)

    def advance(self, count: int) -> None:
        """Add `count` received bytes to the current file."""
        self._live.update(self._current, advance=count)

    def reading(self, path: Path) -> BinaryIO:
        """Open a file and show how much of it has been read."""
        return self._live.open(path, "rb", description=escape(f"reading {path.name}"))

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
