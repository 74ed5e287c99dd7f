"""REST API of the model server."""

import base64
import gzip
import json
import socket

import pytest

from tests.serving.model_server.servers import DEADLINE, embedded_server_only, eventually
from tests.serving.model_server.toys import jpeg


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def test_row_format_returns_an_object_per_row(server):
    assert server.rest_predict("toys", instances=[{"x": 1.0}, {"x": 2.5}]) == (
        200,
        {"predictions": [{"y": 8.0, "version": 7.0}, {"y": 9.5, "version": 7.0}]},
    )


def test_row_format_accepts_plain_values_for_a_single_input(server):
    assert server.rest_predict("toys", instances=[1, 2])[1]["predictions"][1]["y"] == 9.0


def test_row_format_returns_plain_values_for_a_single_output(server):
    rows = [{"points": [1, 2], "weights": 3}, {"points": [4, 5], "weights": 1}]
    result = server.rest_predict("toys", signature_name="weigh", instances=rows)
    assert result == (200, {"predictions": [[3.0, 6.0], [4.0, 5.0]]})


def test_column_format_returns_a_tensor_per_output(server):
    assert server.rest_predict("toys", inputs={"x": [1.0, 2.5]}) == (
        200,
        {"outputs": {"y": [8.0, 9.5], "version": [7.0, 7.0]}},
    )


def test_column_format_accepts_a_plain_tensor_for_a_single_input(server):
    assert server.rest_predict("toys", signature_name="wait", inputs=__file__) == (200, {"outputs": 7.0})


def test_floats_have_their_shortest_decimal_form(server):
    rows = [{"points": [0.1, 0.2], "weights": 1}]
    assert server.rest_predict("toys", signature_name="weigh", instances=rows)[1] == {"predictions": [[0.1, 0.2]]}


def test_b64_encodes_bytes_in_both_formats(server):
    rows = {"instances": [{"image_bytes": b64(jpeg(5))}, {"image_bytes": b64(jpeg(9))}]}
    columns = {"inputs": {"image_bytes": [b64(jpeg(5)), b64(jpeg(9))]}}
    by_row = server.rest_predict("toys", signature_name="measure", **rows)[1]["predictions"]
    by_column = server.rest_predict("toys", signature_name="measure", **columns)[1]["outputs"]
    assert [row["height"] for row in by_row] == by_column["height"] == [5, 9]


def test_b64_encodes_bytes_for_any_input_name(server):
    result = server.rest_predict("toys", signature_name="spell", instances=[b64("Mäuschen".encode()), "Katze"])
    assert [row["text"] for row in result[1]["predictions"]] == ["Mäuschen", "Katze"]


def as_mime(text: str) -> str:
    return "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\r\n"


@pytest.mark.parametrize(
    "written",
    [
        as_mime,
        lambda text: text + "\n",
        lambda text: text.rstrip("="),
        lambda text: text.replace("=", "."),
        lambda text: " \t\v\f" + "\n".join(text),
        lambda text: as_mime(text.rstrip("=")),
    ],
    ids=["MIME lines", "newline at the end", "no padding", "dots", "white space everywhere", "lines without padding"],
)
@pytest.mark.parametrize("length", range(1, 7))
def test_b64_accepts_white_space_and_missing_padding_as_tensorflow_serving_does(server, written, length):
    content = bytes(range(65, 65 + length)) * 31  # every remainder of division by 3, in several lines
    text = written(base64.b64encode(content).decode())
    for request in ({"instances": [{"b64": text}]}, {"inputs": [{"b64": text}]}):
        code, document = server.rest_predict("toys", signature_name="spell", **request)
        assert code == 200, document
        assert content.decode() in json.dumps(document)


@pytest.mark.parametrize(
    "text", ["*", "A", "AAAAA", "QUI=QUI=", "QQ=", "QUI==", "Q=Q=", "Q-_Q", "=", "QÄ==", "A=BC", "QUJD="]
)
def test_b64_that_tensorflow_serving_rejects_is_a_bad_request(server, text):
    code, document = server.rest_predict("toys", signature_name="spell", instances=[{"b64": text}])
    assert (code, "Unable to base64 decode" in document["error"]) == (400, True)


def test_body_can_be_gzip_compressed(server):
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    for content, code in ((body, 200), (body[:-5], 400), (b"no gzip", 400)):
        with server.connection() as connection:
            connection.request("POST", "/v1/models/toys:predict", content, {"Content-Encoding": "gzip"})
            response = connection.getresponse()
            assert (response.status, json.loads(response.read()).keys()) == (
                code,
                {"predictions"} if code == 200 else {"error"},
            )


def test_outputs_named_bytes_are_b64_and_others_text(server):
    result = server.rest_predict("toys", signature_name="spell", instances=["Mäuschen"])
    assert result == (200, {"predictions": [{"text": "Mäuschen", "copy_bytes": b64("Mäuschen".encode())}]})


@pytest.mark.parametrize("path", ["toys/versions/7", "TOYS/versions/7"])
def test_path_selects_the_version_and_model_names_are_case_sensitive(server, path):
    assert server.rest_predict(path, instances=[1.0])[0] == (200 if path.startswith("toys") else 404)


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("nobody", 404, "Servable not found for request: Latest(nobody)"),
        ("toys/versions/9", 404, "Servable not found for request: Specific(toys, 9)"),
        ("toys/labels/gold", 400, "Unrecognized servable version label: gold"),
    ],
)
def test_unavailable_model_has_the_http_status_of_its_grpc_error(server, path, code, text):
    assert server.rest_predict(path, instances=[1.0]) == (code, {"error": text})


def test_unknown_signature_is_a_bad_request(server):
    code, document = server.rest_predict("toys", signature_name="fly", instances=[1.0])
    assert code == 400
    assert '"fly" not found in signature def' in document["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"instances": []}',
        b'{"instances": 1}',
        b'{"instances": [1.0], "inputs": [1.0]}',
        b'{"instances": [1.0], "signature_name": 1}',
        b'{"instances": ["one"]}',
        b'{"instances": [true]}',
        b'{"instances": [null]}',
        b'{"instances": [{"z": 1.0}]}',
        b'{"instances": [1.0, [1.0]]}',
        b'{"instances": [1.0, {"x": 1.0}]}',
        b'{"inputs": {"z": [1.0]}}',
        b'{"inputs": [[1.0], [1.0, 2.0]]}',
        b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"signature_name": "weigh", "instances": [1.0]}',
        b'{"signature_name": "weigh", "inputs": {"points": [[1, 2]], "weights": [1.5]}}',
        b'{"signature_name": "weigh", "inputs": {"points": [[1, 2]], "weights": [9223372036854775808]}}',
        b'{"signature_name": "measure", "instances": [{"b64": "*"}]}',
        b'{"signature_name": "measure", "instances": [{"b64": 1}]}',
        b'{"signature_name": "measure", "instances": ["no photo"]}',
    ],
)
def test_invalid_body_is_a_bad_request_with_a_reason(server, body):
    code, document = server.rest("POST", "/v1/models/toys:predict", body)
    assert code == 400, document
    assert document["error"]


def test_error_names_the_invalid_element(server):
    error = server.rest_predict("toys", instances=[1.0, "one"])[1]["error"]
    assert "Failed to process element: 1 of 'instances' list." in error
    assert "Type: String is not of expected type: float" in error


def test_status_contains_names_of_states_and_codes(server):
    expected = {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert server.rest("GET", "/v1/models/toys") == (200, {"model_version_status": [expected]})
    assert server.rest("GET", "/v1/models/toys/versions/7")[0] == 200


def test_status_of_an_unknown_model_or_version_is_not_found(server):
    assert server.rest("GET", "/v1/models/nobody")[0] == 404
    assert server.rest("GET", "/v1/models/toys/versions/9")[0] == 404


def test_metadata_contains_the_signatures(server):
    code, document = server.rest("GET", "/v1/models/toys/metadata")
    assert code == 200
    assert document["model_spec"] == {"name": "toys", "signature_name": "", "version": "7"}
    weights = document["metadata"]["signature_def"]["signature_def"]["weigh"]["inputs"]["weights"]
    assert weights["dtype"] == "DT_INT64"
    assert weights["tensor_shape"]["dim"][0]["size"] == "-1"


def test_metadata_of_an_unavailable_model_is_not_found(server):
    assert server.rest("GET", "/v1/models/nobody/metadata")[0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models/toys:predict"), ("POST", "/v1/models/toys"), ("GET", "/v1/cats"), ("GET", "/v1/models")],
)
def test_other_paths_of_the_api_are_bad_requests(server, method, path):
    assert server.rest(method, path, b"{}" if method == "POST" else None)[0] == 400


def test_connection_is_kept_open_for_further_requests(server):
    with server.connection() as connection:
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request("POST", "/v1/models/toys:predict", json.dumps({"instances": [1.0]}))
            assert connection.getresponse().read()
        assert connection.sock is first


def test_body_can_be_chunked(server):
    with server.connection() as connection:
        connection.request("POST", "/v1/models/toys:predict", iter([b'{"instances"', b": [1.0]}"]))
        assert json.loads(connection.getresponse().read())["predictions"][0]["y"] == 8.0


@embedded_server_only
@pytest.mark.parametrize(("length", "code"), [("10000000000000", b"413"), ("-1", b"400"), ("many", b"400")])
def test_body_with_an_invalid_length_is_rejected_without_reading_it(server, length, code):
    with socket.create_connection(("localhost", server.rest_port), DEADLINE) as client:
        client.sendall(f"POST /v1/models/toys:predict HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert client.recv(1000).split()[1] == code


def test_body_of_megabytes_is_accepted(server):
    assert len(server.rest_predict("toys", inputs=[0.5] * 1_000_000)[1]["outputs"]["y"]) == 1_000_000


@pytest.mark.parametrize(
    "line",
    [
        ':tensorflow:serving:request_count{model_name="toys",status="OK"}',
        ':tensorflow:serving:request_count{model_name="toys",status="INVALID_ARGUMENT"}',
        ':tensorflow:serving:request_latency_count{model_name="toys",API="predict",entrypoint="REST"}',
        ':tensorflow:serving:request_latency_bucket{model_name="toys",API="predict",entrypoint="REST",le="+Inf"}',
        ':tensorflow:serving:runtime_latency_count{model_name="toys",API="Predict",runtime="TF1"}',
    ],
)
def test_metrics_count_requests_under_the_names_of_tensorflow_serving(server, line):
    before = server.metric(line)
    server.rest_predict("toys", instances=[1.0])
    server.rest_predict("toys", instances=["one"])
    eventually(lambda: server.metric(line) > before)


def test_metrics_count_loads(server, toys):
    line = f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{toys / "7"}",status="success"}}'
    assert server.metric(line) == 1
