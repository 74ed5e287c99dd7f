"""What the gRPC clients, and the gateway behind one, make of a model server that fails, hangs or answers nonsense."""

import asyncio
from collections.abc import Callable, Iterator

import grpc
import pytest

from serving import protos
from serving.client import BadAnswer, Refused, TimedOut, Unavailable
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from tests.serving.classifier import encoded, picture
from tests.serving.gateway.gateways import Gateway, problem
from tests.serving.scripted_server import HANG, ScriptedServer, answer

PHOTO = encoded(picture())
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def script() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts scripted servers; they end with the test."""
    servers = []

    def start(*script) -> ScriptedServer:
        servers.append(ScriptedServer(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def ask(target: str, timeout: float):
    with GrpcClient(target, timeout=timeout) as client:
        return client.predict(PHOTO)


def ask_asynchronously(target: str, timeout: float):
    async def asked():
        async with AsyncGrpcClient(target, timeout=timeout) as client:
            return await client.predict(PHOTO)

    return asyncio.run(asked())


@pytest.fixture(params=[ask, ask_asynchronously])
def asking(request) -> Callable:
    return request.param


def test_a_server_that_is_unavailable_for_a_moment_is_asked_again(asking, script):
    server = script(UNAVAILABLE, UNAVAILABLE)
    assert asking(f"127.0.0.1:{server.port}", 30).model.version == 7
    assert len(server.requests) == 3


def test_one_that_stays_unavailable_is_asked_five_times(asking, script):
    server = script(*[UNAVAILABLE] * 9)
    with pytest.raises(Unavailable, match="scripted error"):
        asking(f"127.0.0.1:{server.port}", 30)
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, Refused),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Unavailable),
        (grpc.StatusCode.INTERNAL, BadAnswer),
    ],
)
def test_what_another_try_would_not_mend_is_asked_once(asking, script, code, error):
    server = script(code)
    with pytest.raises(error, match="scripted error"):
        asking(f"127.0.0.1:{server.port}", 30)
    assert len(server.requests) == 1


def test_the_deadline_ends_the_wait_and_the_server_knows_it(asking, script):
    server = script(HANG)
    with pytest.raises(TimedOut):
        asking(f"127.0.0.1:{server.port}", 2)
    assert [0 < asked.seconds_left <= 2 for asked in server.requests] == [True]


@pytest.mark.parametrize(
    "nonsense",
    [protos.PredictResponse(), answer(()), answer(probability=float("nan"))],
    ids=["nothing", "no breeds", "no number"],
)
def test_an_answer_that_is_none_of_a_breed_classifier_is_said_to_be(asking, script, nonsense):
    with pytest.raises(BadAnswer):
        asking(f"127.0.0.1:{script(nonsense).port}", 30)


def test_requests_are_spread_over_the_addresses_of_a_name(script):
    servers = [script(), script()]
    with GrpcClient("ipv4:" + ",".join(f"127.0.0.1:{server.port}" for server in servers)) as client:
        while not all(server.requests for server in servers):
            client.predict(PHOTO)  # a connection may come later than the other
        before = [len(server.requests) for server in servers]
        for _ in range(10):
            client.predict(PHOTO)
    assert [len(server.requests) - n for server, n in zip(servers, before, strict=True)] == [5, 5]


def test_the_gateway_passes_the_trace_and_what_is_left_of_the_deadline(script, tmp_path):
    server = script(UNAVAILABLE, answer(), HANG)
    gateway = Gateway(tmp_path, server.port, deadline_seconds=5)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "tracestate": "vendor=1"}
    assert gateway.predict(PHOTO, headers=headers).json()["model"]["version"] == 7
    assert problem(gateway.predict(PHOTO)) == (504, "timed_out")
    gateway.stop()
    first, second, third = server.requests
    for asked in (first, second):
        assert asked.metadata["traceparent"].startswith(f"00-{trace}-")
        assert asked.metadata["tracestate"] == "vendor=1"
    assert all(0 < asked.seconds_left <= 5 for asked in server.requests)
    assert trace not in third.metadata["traceparent"]
