"""What the REST API promises."""

import base64
import gzip
import json
import socket

import pytest

from tests.serving.model_server.servers import DEADLINE, eventually, only_ours
from tests.serving.model_server.toys import jpeg


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def test_rows_of_objects_have_an_object_for_each_row(server):
    assert server.rest_predict("toys", instances=[{"x": 1.0}, {"x": 2.5}]) == (
        200,
        {"predictions": [{"y": 8.0, "version": 7.0}, {"y": 9.5, "version": 7.0}]},
    )


def test_rows_of_values_serve_where_there_is_one_input(server):
    assert server.rest_predict("toys", instances=[1, 2])[1]["predictions"][1]["y"] == 9.0


def test_one_output_stands_for_itself(server):
    rows = [{"points": [1, 2], "weights": 3}, {"points": [4, 5], "weights": 1}]
    answer = server.rest_predict("toys", signature_name="weigh", instances=rows)
    assert answer == (200, {"predictions": [[3.0, 6.0], [4.0, 5.0]]})


def test_columns_have_a_tensor_for_each_output(server):
    assert server.rest_predict("toys", inputs={"x": [1.0, 2.5]}) == (
        200,
        {"outputs": {"y": [8.0, 9.5], "version": [7.0, 7.0]}},
    )


def test_a_column_alone_serves_where_there_is_one_input(server):
    assert server.rest_predict("toys", signature_name="wait", inputs=__file__) == (200, {"outputs": 7.0})


def test_floats_are_as_short_as_they_can_be(server):
    rows = [{"points": [0.1, 0.2], "weights": 1}]
    assert server.rest_predict("toys", signature_name="weigh", instances=rows)[1] == {"predictions": [[0.1, 0.2]]}


def test_b64_carries_bytes_in_both_formats(server):
    rows = {"instances": [{"image_bytes": b64(jpeg(5))}, {"image_bytes": b64(jpeg(9))}]}
    columns = {"inputs": {"image_bytes": [b64(jpeg(5)), b64(jpeg(9))]}}
    by_row = server.rest_predict("toys", signature_name="measure", **rows)[1]["predictions"]
    by_column = server.rest_predict("toys", signature_name="measure", **columns)[1]["outputs"]
    assert [row["height"] for row in by_row] == by_column["height"] == [5, 9]


def test_b64_carries_bytes_whatever_the_input_is_called(server):
    answer = server.rest_predict("toys", signature_name="spell", instances=[b64("Mäuschen".encode()), "Katze"])
    assert [row["text"] for row in answer[1]["predictions"]] == ["Mäuschen", "Katze"]


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
def test_b64_may_have_white_space_and_no_padding_as_in_tensorflow_serving(server, written, length):
    content = bytes(range(65, 65 + length)) * 31  # every remainder of division by 3, in several lines
    text = written(base64.b64encode(content).decode())
    for request in ({"instances": [{"b64": text}]}, {"inputs": [{"b64": text}]}):
        code, answer = server.rest_predict("toys", signature_name="spell", **request)
        assert code == 200, answer
        assert content.decode() in json.dumps(answer)


@pytest.mark.parametrize(
    "text", ["*", "A", "AAAAA", "QUI=QUI=", "QQ=", "QUI==", "Q=Q=", "Q-_Q", "=", "QÄ==", "A=BC", "QUJD="]
)
def test_b64_that_tensorflow_serving_refuses_is_refused(server, text):
    code, answer = server.rest_predict("toys", signature_name="spell", instances=[{"b64": text}])
    assert (code, "Unable to base64 decode" in answer["error"]) == (400, True)


def test_a_body_may_be_compressed(server):
    body = gzip.compress(json.dumps({"instances": [1.0]}).encode())
    for content, code in ((body, 200), (body[:-5], 400), (b"no gzip", 400)):
        with server.connection() as connection:
            connection.request("POST", "/v1/models/toys:predict", content, {"Content-Encoding": "gzip"})
            response = connection.getresponse()
            assert (response.status, json.loads(response.read()).keys()) == (
                code,
                {"predictions"} if code == 200 else {"error"},
            )


def test_outputs_named_bytes_come_back_as_b64_and_others_as_text(server):
    answer = server.rest_predict("toys", signature_name="spell", instances=["Mäuschen"])
    assert answer == (200, {"predictions": [{"text": "Mäuschen", "copy_bytes": b64("Mäuschen".encode())}]})


@pytest.mark.parametrize("path", ["toys/versions/7", "TOYS/versions/7"])
def test_a_version_is_part_of_the_path_and_names_keep_their_case(server, path):
    assert server.rest_predict(path, instances=[1.0])[0] == (200 if path.startswith("toys") else 404)


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("nobody", 404, "Servable not found for request: Latest(nobody)"),
        ("toys/versions/9", 404, "Servable not found for request: Specific(toys, 9)"),
        ("toys/labels/gold", 400, "Unrecognized servable version label: gold"),
    ],
)
def test_what_does_not_serve_has_the_code_of_its_grpc_error(server, path, code, text):
    assert server.rest_predict(path, instances=[1.0]) == (code, {"error": text})


def test_an_unknown_signature_is_a_bad_request(server):
    code, answer = server.rest_predict("toys", signature_name="fly", instances=[1.0])
    assert code == 400
    assert '"fly" not found in signature def' in answer["error"]


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
def test_a_broken_body_is_a_bad_request_that_says_why(server, body):
    code, answer = server.rest("POST", "/v1/models/toys:predict", body)
    assert code == 400, answer
    assert answer["error"]


def test_an_element_that_does_not_fit_is_named(server):
    error = server.rest_predict("toys", instances=[1.0, "one"])[1]["error"]
    assert "Failed to process element: 1 of 'instances' list." in error
    assert "Type: String is not of expected type: float" in error


def test_status_is_json_with_names(server):
    expected = {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert server.rest("GET", "/v1/models/toys") == (200, {"model_version_status": [expected]})
    assert server.rest("GET", "/v1/models/toys/versions/7")[0] == 200


def test_status_of_what_is_not_there_is_not_found(server):
    assert server.rest("GET", "/v1/models/nobody")[0] == 404
    assert server.rest("GET", "/v1/models/toys/versions/9")[0] == 404


def test_metadata_is_json_with_the_signatures(server):
    code, answer = server.rest("GET", "/v1/models/toys/metadata")
    assert code == 200
    assert answer["model_spec"] == {"name": "toys", "signature_name": "", "version": "7"}
    weights = answer["metadata"]["signature_def"]["signature_def"]["weigh"]["inputs"]["weights"]
    assert weights["dtype"] == "DT_INT64"
    assert weights["tensor_shape"]["dim"][0]["size"] == "-1"


def test_metadata_is_the_readiness_of_a_model(server):
    assert server.rest("GET", "/v1/models/nobody/metadata")[0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models/toys:predict"), ("POST", "/v1/models/toys"), ("GET", "/v1/cats"), ("GET", "/v1/models")],
)
def test_other_paths_of_the_api_are_bad_requests(server, method, path):
    assert server.rest(method, path, b"{}" if method == "POST" else None)[0] == 400


def test_one_connection_serves_many_requests(server):
    with server.connection() as connection:
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request("POST", "/v1/models/toys:predict", json.dumps({"instances": [1.0]}))
            assert connection.getresponse().read()
        assert connection.sock is first


def test_a_body_may_come_in_chunks(server):
    with server.connection() as connection:
        connection.request("POST", "/v1/models/toys:predict", iter([b'{"instances"', b": [1.0]}"]))
        assert json.loads(connection.getresponse().read())["predictions"][0]["y"] == 8.0


@only_ours
@pytest.mark.parametrize(("length", "code"), [("10000000000000", b"413"), ("-1", b"400"), ("many", b"400")])
def test_a_body_of_impossible_length_is_refused_before_it_is_read(server, length, code):
    with socket.create_connection(("localhost", server.rest_port), DEADLINE) as client:
        client.sendall(f"POST /v1/models/toys:predict HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert client.recv(1000).split()[1] == code


def test_a_body_of_megabytes_is_answered(server):
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
def test_prometheus_counts_requests_under_tensorflow_servings_names(server, line):
    before = server.metric(line)
    server.rest_predict("toys", instances=[1.0])
    server.rest_predict("toys", instances=["one"])
    eventually(lambda: server.metric(line) > before)


def test_prometheus_counts_loads(server, toys):
    line = f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{toys / "7"}",status="success"}}'
    assert server.metric(line) == 1
