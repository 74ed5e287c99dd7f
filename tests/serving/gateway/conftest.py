"""Fixtures that start gateways."""

from collections.abc import Callable, Iterator

import pytest

from tests.serving.gateway.gateways import Gateway


@pytest.fixture(scope="session")
def gateway(model_server, tmp_path_factory) -> Iterator[Gateway]:
    """A gateway in front of the model server with versions 1 and 2."""
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), model_server.port)
    yield gateway
    gateway.stop()


@pytest.fixture
def start_gateway(tmp_path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways, with the arguments of Gateway; stop them at the end of the test."""
    started = []

    def start(model_server: int, **settings: object) -> Gateway:
        started.append(Gateway(tmp_path, model_server, **settings))
        return started[-1]

    yield start
    for gateway in started:
        gateway.process.kill()
        gateway.process.wait()
