"""Requests that never stop, and what became of them."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx

from tests.serving.gateway.gateways import PHOTOS, PREDICT
from tests.serving.model_server.servers import DEADLINE, ModelServer


class Traffic:
    """Requests for `stable`; `answered` counts them by the version that answered, `failed` are the errors."""

    def __init__(self, model: str):
        self.model = model
        self.answered: dict[int, int] = {}
        self.failed: list[str] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def send(self, server: ModelServer) -> None:
        while not self.stopped.wait(0.005):  # leaves the servers some of the machine
            try:
                version = round(server.added(self.model, "stable"))
            except grpc.RpcError as error:
                self.failed.append(f"{error.code().name}: {error.details()}")
            else:
                with self._lock:
                    self.answered[version] = self.answered.get(version, 0) + 1


@contextlib.contextmanager
def traffic(model: str, servers: list[ModelServer]) -> Iterator[Traffic]:
    """Sends to each server for as long as the block runs, and sees nothing fail."""
    sent = Traffic(model)
    threads = [threading.Thread(target=sent.send, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield sent
    finally:
        sent.stopped.set()
        for thread in threads:
            thread.join()
    assert not sent.failed, sent.failed


class Visitors:
    """People who go on asking a gateway.

    Attributes:
        versions: that each person has seen.
        last: the version that each has seen last.
        codes: how often each HTTP code came.
    """

    def __init__(self, gateway: str):
        self.url = gateway + PREDICT
        self.versions: dict[str, set[int]] = {}
        self.last: dict[str, int] = {}
        self.codes: Counter[int] = Counter()
        self.ended = threading.Event()

    def ask(self, person: str) -> None:
        with httpx.Client(timeout=DEADLINE, headers={"X-Request-Key": person}) as http:
            while not self.ended.wait(0.002):
                response = http.post(self.url, content=PHOTOS[0])
                self.codes[response.status_code] += 1
                if response.is_success:
                    self.last[person] = response.json()["model"]["version"]
                    self.versions.setdefault(person, set()).add(self.last[person])

    @property
    def latest(self) -> set[int]:
        """What people see now."""
        return set(self.last.values())


@contextlib.contextmanager
def visitors(gateway: str, people: int = 8) -> Iterator[Visitors]:
    """Lets people ask for as long as the block runs.

    Args:
        gateway: its URL.
        people: how many.
    """
    seen = Visitors(gateway)
    with ThreadPoolExecutor(people) as threads:
        asking = [threads.submit(seen.ask, f"person {number}") for number in range(people)]
        try:
            yield seen
        finally:
            seen.ended.set()
    for person in asking:
        person.result()
