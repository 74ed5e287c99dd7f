"""gRPC clients, and the gateway, with a model server that fails, hangs or returns invalid responses."""

import asyncio
from collections.abc import Callable, Iterator

import grpc
import pytest

from serving import protos
from serving.client import BadResponse, RequestRejected, TimedOut, Unavailable
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from tests.serving.classifier import encoded, picture
from tests.serving.gateway.gateways import Gateway, problem
from tests.serving.scripted_server import HANG, ScriptedServer, prediction_response

PHOTO = encoded(picture())
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def script() -> Iterator[Callable[..., ScriptedServer]]:
    """Start scripted servers, and stop them at the end of the test."""
    servers = []

    def start(*script) -> ScriptedServer:
        servers.append(ScriptedServer(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def predict(target: str, timeout: float):
    with GrpcClient(target, timeout=timeout) as client:
        return client.predict(PHOTO)


def predict_with_asyncio(target: str, timeout: float):
    async def predict():
        async with AsyncGrpcClient(target, timeout=timeout) as client:
            return await client.predict(PHOTO)

    return asyncio.run(predict())


@pytest.fixture(params=[predict, predict_with_asyncio])
def predict_with(request) -> Callable:
    return request.param


def test_a_request_is_retried_while_the_server_is_unavailable(predict_with, script):
    server = script(UNAVAILABLE, UNAVAILABLE)
    assert predict_with(f"127.0.0.1:{server.port}", 30).model.version == 7
    assert len(server.requests) == 3


def test_a_request_is_sent_at_most_five_times(predict_with, script):
    server = script(*[UNAVAILABLE] * 9)
    with pytest.raises(Unavailable, match="scripted error"):
        predict_with(f"127.0.0.1:{server.port}", 30)
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RequestRejected),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Unavailable),
        (grpc.StatusCode.INTERNAL, BadResponse),
    ],
)
def test_an_error_that_a_retry_cannot_fix_is_not_retried(predict_with, script, code, error):
    server = script(code)
    with pytest.raises(error, match="scripted error"):
        predict_with(f"127.0.0.1:{server.port}", 30)
    assert len(server.requests) == 1


def test_a_request_ends_at_its_deadline_and_the_server_receives_the_deadline(predict_with, script):
    server = script(HANG)
    with pytest.raises(TimedOut):
        predict_with(f"127.0.0.1:{server.port}", 3)
    # gRPC rounds up the seconds that it sends.
    assert [0 < request.seconds_left < 4 for request in server.requests] == [True]


@pytest.mark.parametrize(
    "response",
    [protos.PredictResponse(), prediction_response(()), prediction_response(probability=float("nan"))],
    ids=["empty", "no breeds", "not a number"],
)
def test_an_invalid_response_raises_bad_response(predict_with, script, response):
    with pytest.raises(BadResponse):
        predict_with(f"127.0.0.1:{script(response).port}", 30)


def test_the_signatures_of_a_version_are_read_once(script):
    server = script()
    with GrpcClient(f"127.0.0.1:{server.port}") as client:
        for _ in range(3):
            client.predict(PHOTO)
    assert (server.metadata_requests, len(server.requests)) == (1, 3)


def test_only_the_outputs_that_an_answer_contains_are_requested(predict_with, script):
    server = script()
    predict_with(f"127.0.0.1:{server.port}", 30)
    assert [sorted(request.outputs) for request in server.requests] == [["breeds", "probabilities"]]


def test_requests_are_balanced_between_the_addresses_of_a_name(script):
    servers = [script(), script()]
    with GrpcClient("ipv4:" + ",".join(f"127.0.0.1:{server.port}" for server in servers)) as client:
        while not all(server.requests for server in servers):
            client.predict(PHOTO)  # one connection may be ready later than the other
        before = [len(server.requests) for server in servers]
        for _ in range(10):
            client.predict(PHOTO)
    assert [len(server.requests) - n for server, n in zip(servers, before, strict=True)] == [5, 5]


def test_the_gateway_passes_on_the_trace_and_the_remaining_deadline(script, tmp_path):
    server = script(UNAVAILABLE, prediction_response(), HANG)
    gateway = Gateway(tmp_path, server.port, deadline_seconds=5)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "tracestate": "vendor=1"}
    assert gateway.predict(PHOTO, headers=headers).json()["model"]["version"] == 7
    assert problem(gateway.predict(PHOTO)) == (504, "timed_out")
    gateway.stop()
    first, second, third = server.requests
    for request in (first, second):
        assert request.metadata["traceparent"].startswith(f"00-{trace}-")
        assert request.metadata["tracestate"] == "vendor=1"
    assert all(0 < request.seconds_left <= 5 for request in server.requests)
    assert trace not in third.metadata["traceparent"]
