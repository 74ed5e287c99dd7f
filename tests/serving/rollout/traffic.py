"""Continuous requests to model servers and gateways, and their results."""

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
    """Requests for `stable`: `responses` counts the responses by version, `failures` lists the errors."""

    def __init__(self, model: str):
        self.model = model
        self.responses: dict[int, int] = {}
        self.failures: list[str] = []
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def send(self, server: ModelServer) -> None:
        while not self.stopped.wait(0.005):  # leaves CPU time to the servers
            try:
                version = round(server.added(self.model, "stable"))
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            else:
                with self._lock:
                    self.responses[version] = self.responses.get(version, 0) + 1


@contextlib.contextmanager
def traffic(model: str, servers: list[ModelServer]) -> Iterator[Traffic]:
    """Send requests to each server while the block runs, and assert that none fails."""
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
    assert not sent.failures, sent.failures


class Clients:
    """Clients that send requests to a gateway without a pause.

    Attributes:
        versions: Versions that responded to each client.
        last: Version that responded last to each client.
        codes: Number of responses by HTTP status code.
    """

    def __init__(self, gateway: str):
        self.url = gateway + PREDICT
        self.versions: dict[str, set[int]] = {}
        self.last: dict[str, int] = {}
        self.codes: Counter[int] = Counter()
        self.stopped = threading.Event()

    def send(self, client: str) -> None:
        with httpx.Client(timeout=DEADLINE, headers={"X-Request-Key": client}) as http:
            while not self.stopped.wait(0.002):
                response = http.post(self.url, content=PHOTOS[0])
                self.codes[response.status_code] += 1
                if response.is_success:
                    self.last[client] = response.json()["model"]["version"]
                    self.versions.setdefault(client, set()).add(self.last[client])


@contextlib.contextmanager
def gateway_clients(gateway: str, count: int = 8) -> Iterator[Clients]:
    """Run clients while the block runs.

    Args:
        gateway: URL of the gateway.
        count: Number of clients.
    """
    clients = Clients(gateway)
    with ThreadPoolExecutor(count) as threads:
        # The split of the requests depends on these keys.
        senders = [threads.submit(clients.send, f"person {number}") for number in range(count)]
        try:
            yield clients
        finally:
            clients.stopped.set()
    for sender in senders:
        sender.result()
