"""`catbreeds predict` explains wrong server addresses: the message gives the expected form."""

import pytest

from serving.client import InvalidKey, WrongAddress
from serving.client.gateway import GatewayClient
from tests.running import catbreeds
from tests.serving.gateway.gateways import PHOTOS


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "cat.jpg"
    path.write_bytes(PHOTOS[1])
    return path


def predict(photo, flag: str, address: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    done = catbreeds("predict", photo, flag, address)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr or done.stdout


@pytest.mark.parametrize("path", ["/docs", "/v1/breeds:predict", "/readyz", "/any/path", "/?x=1", "/#top"])
def test_the_address_of_a_gateway_has_no_path(gateway, photo, path):
    code, output = predict(photo, "--gateway", gateway.url + path)
    assert (code, "write the address without a path, http://HOST:PORT" in output) == (2, True), output
    with GatewayClient(gateway.url + path) as client, pytest.raises(WrongAddress):
        client.ready()


@pytest.mark.parametrize("path", ["/v1/models/catbreeds:predict", "/v1", "/docs", "/?x=1"])
def test_the_address_of_a_model_server_has_no_path(model_server, photo, path):
    code, output = predict(photo, "--rest", f"http://localhost:{model_server.rest_port}{path}")
    assert (code, "write the address without a path, http://HOST:PORT" in output) == (2, True), output


def test_the_address_of_another_kind_of_server_is_a_usage_error(gateway, model_server, photo):
    for flag, address in (("--gateway", f"http://localhost:{model_server.rest_port}"), ("--rest", gateway.url)):
        code, output = predict(photo, flag, address)
        assert (code, "write the address without a path, http://HOST:PORT" in output) == (2, True), output


@pytest.mark.parametrize(
    ("flag", "address", "message"),
    [
        ("--grpc", "http://localhost:8500", "write HOST:PORT"),
        ("--gateway", "localhost:8000", "write http://HOST:PORT"),
        ("--rest", "localhost", "write http://HOST:PORT"),
        ("--gateway", "http://", "write http://HOST:PORT"),
        ("--gateway", "http://localhost:many", "write http://HOST:PORT"),
        ("--gateway", "http://localhost:99999", "the port must be between 1 and 65535; write http://HOST:PORT"),
        ("--rest", "http://[::1]:0/", "the port must be between 1 and 65535; write http://HOST:PORT"),
        ("--grpc", "localhost:99999", "the port must be between 1 and 65535; write HOST:PORT"),
        ("--grpc", "grpc://localhost:8500", "a gRPC address is not a URL; write HOST:PORT"),
        ("--grpc", "localhost", "the port is missing; write HOST:PORT"),
        *((flag, "", f"{flag}: the value is empty") for flag in ("--gateway", "--rest", "--grpc", "--label")),
    ],
)
def test_a_malformed_address_is_a_usage_error(photo, flag, address, message):
    code, output = predict(photo, flag, address)
    assert (code, message in output) == (2, True), output


def test_an_https_address_of_an_http_server_is_a_usage_error(gateway, model_server, photo):
    for flag, port in (("--gateway", gateway.port), ("--rest", model_server.rest_port)):
        code, output = predict(photo, flag, f"https://localhost:{port}")
        assert (code, f"https://localhost:{port} does not support https; write http://HOST:PORT" in output) == (2, True)


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", "\x7f"])
def test_a_key_that_is_invalid_in_an_http_header_is_a_usage_error_and_is_not_printed(gateway, photo, key):
    done = catbreeds("predict", photo, "--gateway", gateway.url, "--api-key", key)
    assert (done.returncode, "the API key has characters that an HTTP header cannot" in done.stderr) == (2, True)
    assert key not in done.stderr
    with pytest.raises(InvalidKey, match="the request key has characters"):
        GatewayClient(gateway.url, request_key=key)


def test_a_trailing_slash_makes_no_difference(gateway, photo):
    assert predict(photo, "--gateway", f"{gateway.url}/")[0] == 0
