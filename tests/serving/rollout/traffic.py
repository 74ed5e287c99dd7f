"""Requests that never stop, and what became of them."""

import contextlib
import threading
from collections.abc import Iterator

import grpc

from tests.serving.model_server.servers import ModelServer


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
    assert sent.failed == []
