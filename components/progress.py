"""How far a long component is. Components report, whoever runs them may listen; nobody listening costs nothing."""

from collections.abc import Callable

Listener = Callable[[str, int, int | None], None]

_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Sends the reports of this process to `listener(what, done, total)`; None stops that."""
    global _listener
    _listener = listener


def report(what: str, done: int, total: int | None = None) -> None:
    """Says that `done` of `total` (None: unknown) units of `what` are finished."""
    if _listener is not None:
        _listener(what, done, total)


class Counter:
    """Adds up work that is finished in pieces, as in the bundles of a Beam worker."""

    def __init__(self, what: str, total: int | None = None):
        self.what, self.total, self.done = what, total, 0

    def add(self, count: int = 1) -> None:
        """Reports `count` more units."""
        self.done += count
        report(self.what, self.done, self.total)
