"""Process of the model server: flags, configuration files, batching, start and stop."""

import json
import signal
import socket
import subprocess
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from tests import fork_server
from tests.serving.model_server.servers import (
    COMMAND,
    DEADLINE,
    REAL_SERVER,
    ModelServer,
    Popen,
    embedded_server_only,
    eventually,
    free_port,
    grpc_error,
    listening,
    predict_request,
)
from tests.serving.model_server.toys import jpeg, push


def start(*arguments: object) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    if REAL_SERVER:
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return fork_server.run(command, timeout=DEADLINE)


@embedded_server_only
def test_unsupported_flag_is_rejected_by_name(base):
    process = start(f"--model_base_path={base}", "--ssl_config_file=tls.config")
    assert process.returncode == 2
    assert "--ssl_config_file" in process.stderr
    assert "does not support it" in process.stderr


@embedded_server_only
def test_unknown_flag_is_rejected_by_name(base):
    process = start(f"--model_base_path={base}", "--enable_bathing")
    assert process.returncode == 2
    assert "unknown argument: --enable_bathing" in process.stderr


@embedded_server_only
def test_help_lists_the_flags_without_importing_tensorflow():
    process = subprocess.run(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], "--help"], capture_output=True, text=True, check=True
    )
    assert "--model_config_file_poll_wait_seconds" in process.stdout
    assert "| tensorflow" not in process.stderr
    assert "| numpy" not in process.stderr


@embedded_server_only
def test_server_starts_tensorflow_without_keras(tmp_path):
    (tmp_path / "1").mkdir()  # not a SavedModel, so the server ends
    flags = ["--port=0", "--rest_api_port=1", f"--model_base_path={tmp_path}", "--max_num_load_retries=0"]
    process = subprocess.run(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], *flags], capture_output=True, text=True, check=False
    )
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "tensorflow" in imported
    assert not any(module.startswith("keras.") for module in imported)


@embedded_server_only
@pytest.mark.parametrize("host", [None, "127.0.0.1", "0.0.0.0", "::1", "::"])
def test_server_listens_on_loopback_unless_a_host_is_given(tmp_path, host):
    config = tmp_path / "none.config"
    config.write_text("model_config_list {}")
    ports = free_port(), free_port()
    command = [*COMMAND, f"--port={ports[0]}", f"--rest_api_port={ports[1]}", f"--model_config_file={config}"]
    process = Popen([*command, *([f"--host={host}"] if host else [])], stderr=subprocess.DEVNULL)
    try:
        found = eventually(lambda: (found := listening(process.pid)).keys() >= set(ports) and found)
        expected = {"0.0.0.0", "::"} if host in ("0.0.0.0", "::") else {host or "127.0.0.1"}
        assert {found[port] for port in ports} <= expected
        for port in ports:
            socket.create_connection(({"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, found[port]), port)).close()
    finally:
        process.kill()
        process.wait()


@embedded_server_only
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--model_base_path"),
        (["--model_base_path=/x", "--enable_batching=perhaps"], "must be true or false"),
        (["--model_base_path=/x", "--monitoring_config_file=/x"], "--rest_api_port"),
        (["--model_base_path=/x", "--batching_parameters_file=/x"], "--enable_batching"),
    ],
)
def test_inconsistent_flags_are_rejected(arguments, text):
    process = start(*arguments)
    assert process.returncode == 2
    assert text in process.stderr


def test_server_does_not_start_if_its_only_model_does_not_load(tmp_path):
    (tmp_path / "model" / "1").mkdir(parents=True)
    process = start(
        "--port=0", "--rest_api_port=1", f"--model_base_path={tmp_path / 'model'}", "--max_num_load_retries=0"
    )
    assert process.returncode not in (0, 2)
    assert "did not become available" in process.stderr


@pytest.fixture(scope="module")
def batching(toys, monitoring, tmp_path_factory):
    """A server that runs a batch only when it has four rows."""
    folder = tmp_path_factory.mktemp("batching")
    parameters = folder / "batching.config"
    parameters.write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 100000000 }"
        " num_batch_threads { value: 2 } max_enqueued_batches { value: 2 }"
    )
    server = ModelServer(
        folder,
        "--model_name=toys",
        f"--model_base_path={toys}",
        "--enable_batching",
        f"--batching_parameters_file={parameters}",
        "--rest_api_timeout_in_ms=2000",
        monitoring,
    )
    yield server
    server.stop()


def test_concurrent_requests_run_as_one_batch(batching):
    requests = [batching.predict("toys", _signature="measure", image_bytes=[jpeg(rows)]) for rows in (5, 6, 7, 8)]
    outputs = [request.result().outputs for request in requests]
    assert [list(output["height"].int_val) for output in outputs] == [[5], [6], [7], [8]]
    assert [list(output["rows"].int_val) for output in outputs] == [[4]] * 4


def test_batch_combines_requests_with_several_rows(batching):
    requests = [batching.predict("toys", x=[1.0, 2.0, 3.0]), batching.predict("toys", x=[4.0])]
    assert [list(request.result().outputs["y"].float_val) for request in requests] == [[8.0, 9.0, 10.0], [11.0]]


def test_undecodable_photo_fails_the_whole_batch(batching):
    photos = [jpeg(5), jpeg(6), jpeg(7), b"no photo"]
    for request in [batching.predict("toys", _signature="measure", image_bytes=[photo]) for photo in photos]:
        with grpc_error(grpc.StatusCode.INVALID_ARGUMENT, "Unknown image file format."):
            request.result()


def test_request_larger_than_a_batch_is_an_invalid_argument(batching):
    with grpc_error(grpc.StatusCode.INVALID_ARGUMENT, "Task size 5 is larger than maximum input batch size 4"):
        batching.predict("toys", x=[1.0] * 5).result()


def test_concurrent_requests_with_the_same_output_filter_run_as_one_batch(batching):
    requests = []
    for rows in (5, 6, 7, 8):
        request = predict_request("toys", signature="measure", image_bytes=[jpeg(rows)])
        request.output_filter.append("rows")
        requests.append(batching.prediction.Predict.future(request, timeout=DEADLINE))
    for request in requests:
        assert {name: list(output.int_val) for name, output in request.result().outputs.items()} == {"rows": [4]}


def test_request_in_an_incomplete_batch_times_out(batching):
    code, document = batching.rest_predict("toys", signature_name="spell", instances=["late"])
    assert (code, document["error"]) == (504, "Timed out waiting for notification")


def test_metrics_contain_batch_sizes(batching):
    line = ":tensorflow:serving:batching:processed_batch_size_sum{}"
    before = batching.metric(line)
    batching.predict("toys", x=[1.0] * 4).result()
    # A request that timed out in an earlier test may end now.
    assert before + 4 <= batching.metric(line) < before + 8


def models_config(base: Path, rest: str) -> str:
    return f"""# as in a mounted volume
        model_config_list {{
          config {{ name: "cats" base_path: "{base}" model_platform: "tensorflow" {rest} }}
        }}"""


@pytest.fixture(scope="module")
def polling(adders, tmp_path_factory):
    """A server that reads its configuration file every second; it starts with version 1 of two."""
    folder = tmp_path_factory.mktemp("polling")
    push(adders / "1", folder / "model", 1)
    push(adders / "2", folder / "model", 2)
    config = folder / "models.config"

    def configure(rest: str) -> None:
        staged = folder / "staged.config"
        staged.write_text(models_config(folder / "model", rest))
        staged.rename(config)

    configure("model_version_policy { specific { versions: 1 } }")
    server = ModelServer(
        folder,
        "--model_config_file",
        str(config),
        "--model_config_file_poll_wait_seconds",
        "1",
        "--enable_batching=false",
    )
    server.configure_by_file, server.config = configure, config
    yield server
    server.stop()


def test_changed_configuration_file_is_applied(polling):
    for version in (2, 1):
        polling.configure_by_file(f"model_version_policy {{ specific {{ versions: {version} }} }}")
        eventually(lambda version=version: polling.added("cats") == version)


def test_invalid_configuration_file_changes_nothing(polling):
    polling.configure_by_file("model_version_policy {")
    eventually(lambda: "not applied" in polling.log.read_text() or REAL_SERVER)
    assert polling.added("cats") == 1


def test_label_in_the_file_moves_once_its_version_is_available(polling, adders):
    polling.configure_by_file("model_version_policy { all {} }")
    eventually(lambda: polling.added("cats") == 2)
    polling.configure_by_file('model_version_policy { all {} } version_labels { key: "canary" value: 3 }')
    eventually(lambda: "Request to assign label canary to version 3" in polling.log.read_text() or REAL_SERVER)
    push(adders / "2", polling.config.parent / "model", 3)

    def moved():
        try:
            return polling.added("cats", "canary") == 2
        except grpc.RpcError:  # not yet
            return False

    eventually(moved)


def test_metrics_are_served_only_if_enabled(polling):
    with polling.connection() as connection:
        connection.request("GET", "/monitoring/prometheus/metrics")
        assert connection.getresponse().status == 404


def test_health_service_runs_only_if_enabled(polling):
    with grpc_error(grpc.StatusCode.UNIMPLEMENTED):
        polling.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=DEADLINE)


def test_server_writes_nothing_to_standard_output(polling):
    polling.added("cats")
    assert polling.output.read_bytes() == b""


@embedded_server_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_server_finishes_requests_in_flight(toys, tmp_path, number):
    server = ModelServer(tmp_path, "--model_name=toys", f"--model_base_path={toys}", "--rest_api_timeout_in_ms=100000")
    stopped = threading.Event()

    def client() -> grpc.StatusCode:
        """Send requests until one is rejected."""
        while True:
            try:
                server.predict("toys", x=[1.0]).result()
            except grpc.RpcError as error:
                assert stopped.is_set()
                return error.code()

    with futures.ThreadPoolExecutor(4) as clients, server.connection() as busy, server.connection() as idle:
        try:
            continue_file = tmp_path / "continue"
            slow = [server.predict("toys", _signature="wait", file=str(continue_file)) for _ in range(2)]
            body = json.dumps({"signature_name": "wait", "inputs": str(continue_file)})
            busy.request("POST", "/v1/models/toys:predict", body)
            idle.request("GET", "/v1/models/toys")
            assert idle.getresponse().read()  # the connection stays open
            assert server.states("toys") == {7: "AVAILABLE"}  # ensures that the slow requests have arrived
            loaded = [clients.submit(client) for _ in range(4)]
            stopped.set()
            server.process.send_signal(number)
            eventually(lambda: not server.listens())
            continue_file.touch()
            assert [request.result().model_spec.version.value for request in slow] == [7, 7]
            response = busy.getresponse()
            assert response.status == 200
            assert "outputs" in json.loads(response.read())
            assert {future.result() for future in loaded} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            assert server.process.wait(DEADLINE) == 0
        finally:
            server.process.kill()  # ends the clients
    server.channel.close()


@embedded_server_only
def test_server_that_waits_for_a_model_can_be_stopped(tmp_path):
    (tmp_path / "empty").mkdir()
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = Popen(
            [*COMMAND, "--port=0", "--rest_api_port=1", f"--model_base_path={tmp_path / 'empty'}"], stderr=stderr
        )
    eventually(lambda: "No versions of servable default found" in log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0
