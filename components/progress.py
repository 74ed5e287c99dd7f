"""Progress of long components. Components report it; the runner can set a listener to receive the reports."""

import threading
from collections.abc import Callable

Listener = Callable[[str, int, int | None], None]

_listener: Listener | None = None


def set_listener(listener: Listener | None) -> None:
    """Set the function `listener(unit, done, total)` that receives the reports of this process; None removes it."""
    global _listener
    _listener = listener


def report(unit: str, done: int, total: int | None = None) -> None:
    """Report that `done` of `total` units, such as "photos", are finished; None means that the total is unknown."""
    if _listener is not None:
        _listener(unit, done, total)


class Counter:
    """Counter of finished units across several calls, such as the bundles of a Beam worker. Threads can share it."""

    def __init__(self, unit: str, total: int | None = None):
        self.unit, self.total, self.done = unit, total, 0
        self._lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        """Report `count` more finished units."""
        with self._lock:
            self.done += count
            report(self.unit, self.done, self.total)
