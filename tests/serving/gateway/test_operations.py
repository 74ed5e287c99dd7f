"""Operations: probes, metrics, logs, traces, settings and graceful shutdown."""

import re
import signal
import socket
import subprocess

import httpx
import pytest

from tests.serving.classifier import BREEDS, encoded, one_white_quarter, plain
from tests.serving.gateway.gateways import PHOTOS, PREDICT, problem, start
from tests.serving.model_server.servers import DEADLINE, ModelServer, eventually, free_port, listening

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_gateway_is_ready_only_while_the_model_server_predicts(start_gateway, classifier, tmp_path):
    port = free_port()
    gateway = start_gateway(port)
    assert gateway.http.get("/healthz").is_success
    assert problem(gateway.http.get("/readyz"))[0] in (503, 504)
    server = ModelServer(tmp_path, "--model_name=catbreeds", f"--model_base_path={classifier}", port=port)
    try:
        ready = eventually(lambda: (response := gateway.http.get("/readyz")).is_success and response)
        assert ready.json() == {"model": {"name": "catbreeds", "version": 2}}
    finally:
        server.stop()
    eventually(lambda: gateway.http.get("/readyz").status_code in (503, 504))
    assert gateway.http.get("/healthz").is_success


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_get_endpoints_also_support_head_requests(gateway, path):
    with_body, without = gateway.http.get(path), gateway.http.head(path)
    assert (without.status_code, without.content) == (200, b"")
    assert without.headers["content-type"] == with_body.headers["content-type"]


def test_head_reports_that_the_gateway_is_not_ready(start_gateway):
    gateway = start_gateway(free_port())
    response = gateway.http.head("/readyz")
    assert (response.status_code in (503, 504), response.content) == (True, b"")


def test_variables_of_other_programs_are_ignored_and_a_host_can_have_brackets(monkeypatch):
    others = {"WEB_CONCURRENCY": "many", "HOST": "x", "PORT": "y", "FORWARDED_ALLOW_IPS": "?", "UVICORN_PORT": "1"}
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    process = start({"host": "[::1]", "port": str(port)}, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: process.poll() is not None or listening(process.pid))
        assert listening(process.pid) == {port: "::1"}
        assert httpx.get(f"http://[::1]:{port}/healthz", timeout=DEADLINE).is_success
    finally:
        process.terminate()
        process.wait(DEADLINE)


def test_a_configured_label_selects_the_version(start_gateway, model_server):
    gateway = start_gateway(model_server.port, model_label="stable")
    assert gateway.predict(PHOTOS[0]).json()["model"]["version"] == 1


def test_a_request_keeps_its_id_and_trace_in_response_and_log(gateway):
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    response = gateway.predict(PHOTOS[2], headers={"X-Request-ID": "order-17", "traceparent": parent})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "order-17"
    assert re.fullmatch(f"00-{TRACE}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01", response.headers["traceparent"])
    line = gateway.logged(event="request", request_id="order-17")
    assert (line["trace_id"], line["code"], line["photos"], line["version"]) == (TRACE, 200, 1, 2)
    for invalid in ("", "two words", "x" * 1000, "00-" + "0" * 32 + "-00f067aa0ba902b7-01"):
        response = gateway.predict(PHOTOS[2], headers={"X-Request-ID": invalid, "traceparent": invalid})
        assert response.is_success
        assert re.fullmatch("00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-0[01]", response.headers["traceparent"])


def test_metrics_count_requests_by_code_and_measure_their_duration(gateway):
    def counted(code: int) -> float:
        return gateway.metric(f'catbreeds_gateway_requests_total{{code="{code}",route="{PREDICT}"}}')

    before = counted(200), counted(415)
    gateway.predict(PHOTOS[0])
    gateway.predict(b"not a photo")
    assert (counted(200), counted(415)) == (before[0] + 1, before[1] + 1)
    for line in ("decode_seconds_count", 'model_server_seconds_count{label="default"}'):
        assert gateway.metric(f"catbreeds_gateway_{line}") > 0
    assert gateway.metric("catbreeds_gateway_in_flight") == 0


def test_metrics_count_photos_by_version_and_predicted_breed(start_gateway, model_server):
    gateway = start_gateway(model_server.port)
    photos = [PHOTOS[0], PHOTOS[0], PHOTOS[3], encoded(one_white_quarter()), encoded(plain("white"))]
    rows = gateway.predict(*photos).json()["photos"]
    gateway.predict(b"not a photo")
    labels = 'label="default",version="2"'
    assert gateway.metric(f"catbreeds_gateway_photos_total{{{labels}}}") == 5
    ambiguous = sum(len(row["prediction_set"]) > 1 for row in rows)
    assert gateway.metric(f"catbreeds_gateway_ambiguous_photos_total{{{labels}}}") == ambiguous == 4
    assert gateway.metric(f"catbreeds_gateway_unfamiliar_photos_total{{{labels}}}") == 1
    best = [row["predictions"][0] for row in rows]
    for breed in BREEDS:
        expected = sum(row["breed"] == breed for row in best)
        assert gateway.metric(f'catbreeds_gateway_breeds_total{{breed="{breed}",version="2"}}') == expected
    assert {row["breed"] for row in best} >= {BREEDS[0], BREEDS[3]}
    low = sum(row["probability"] <= 0.5 for row in best)
    assert 0 < low < 5
    assert gateway.metric('catbreeds_gateway_confidence_bucket{le="0.5",version="2"}') == low
    assert gateway.metric('catbreeds_gateway_confidence_count{version="2"}') == 5


def test_browsers_can_send_requests_from_allowed_origins(start_gateway, model_server):
    origins = ("https://cats.example", "http://localhost:3000", "https://[::1]:8443", "https://xn--mnster-3ya.example")
    configured = "https://Cats.Example:443/, http://localhost:3000/ ,https://[::1]:8443,https://münster.example"
    gateway = start_gateway(model_server.port, cors_origins=configured)
    for origin, allowed in (*((origin, origin) for origin in origins), ("https://dogs.example", None)):
        response = gateway.predict(PHOTOS[0], headers={"Origin": origin})
        assert response.headers.get("access-control-allow-origin") == allowed
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response = gateway.http.options(PREDICT, headers=preflight)
        assert response.headers.get("access-control-allow-origin") == allowed


def test_the_openapi_document_has_examples_and_a_web_page(gateway):
    assert "swagger" in gateway.http.get("/docs").text.lower()
    schemas = gateway.http.get("/openapi.json").json()["components"]["schemas"]
    assert {name for name, schema in schemas.items() if schema.get("examples")} >= {
        "PredictionResponse",
        "ProblemDetails",
    }


def test_requests_in_flight_finish_before_shutdown(start_gateway, model_server):
    gateway = start_gateway(model_server.port)
    with socket.create_connection(("localhost", gateway.port), DEADLINE) as slow:
        slow.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTOS[3])}\r\n\r\n".encode())
        eventually(lambda: gateway.metric("catbreeds_gateway_in_flight") == 1)
        gateway.http.close()
        gateway.process.send_signal(signal.SIGTERM)
        slow.sendall(PHOTOS[3])
        response = b""
        while part := slow.recv(10_000):
            response += part
    assert response.startswith(b"HTTP/1.1 200 ")
    assert BREEDS[3].encode() in response
    assert gateway.process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": "many"}, "CATBREEDS_GATEWAY_PORT: "),
        ({"max_pixel": "5"}, "CATBREEDS_GATEWAY_MAX_PIXEL: no such setting; available settings: "),
        ({"api_keys": "secret"}, "CATBREEDS_GATEWAY_API_KEYS: "),
        ({"model_server": "http://localhost:8500"}, "CATBREEDS_GATEWAY_MODEL_SERVER: a gRPC address is not a URL"),
        ({"model_server": "localhost:99999"}, "CATBREEDS_GATEWAY_MODEL_SERVER: the port must be between 1 and 65535"),
        ({"model_server": "tfserving"}, "CATBREEDS_GATEWAY_MODEL_SERVER: the port is missing"),
        ({"traffic_file": "/"}, "CATBREEDS_GATEWAY_TRAFFIC_FILE: is a folder; set the path of a file"),
        ({"host": ""}, "CATBREEDS_GATEWAY_HOST: "),
        *(
            ({"cors_origins": f"https://cats.example,{origin}"}, f"CATBREEDS_GATEWAY_CORS_ORIGINS: {origin!r}")
            for origin in (
                "cats.example",
                "https://cats.example/page",
                "https://cats.example//",
                "https://cats.example?x",
                "https://cats.example#x",
                "https://jane@cats.example",
                "https://*.example",
                "https://",
                "https://cats.example:many",
            )
        ),
    ],
)
def test_an_invalid_setting_stops_the_start_with_an_error_that_names_it(settings, message):
    process = start(settings, stderr=-1, text=True)
    assert message in process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 2
