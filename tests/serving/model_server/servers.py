"""Model server processes, and clients for them: the official gRPC stubs and HTTP."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.addresses import free_ports
from tests import fork_server

# Path of a tensorflow_model_server to test instead of the embedded server.
REAL_SERVER = os.environ.get("CATBREEDS_TEST_MODEL_SERVER")
COMMAND = [REAL_SERVER] if REAL_SERVER else [sys.executable, "-m", "serving.model_server"]
Popen = subprocess.Popen if REAL_SERVER else fork_server.Popen
DEADLINE = 120  # seconds; generous, because no test result depends on it

embedded_server_only = pytest.mark.skipif(REAL_SERVER is not None, reason="applies only to the embedded server")


def eventually(condition: Callable[[], object]) -> object:
    """Wait until `condition` returns a true value, and return it."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end, "timed out waiting for the condition"
        time.sleep(0.05)
    return value


def free_port() -> int:
    return free_ports(1)[0]


@contextlib.contextmanager
def grpc_error(code: grpc.StatusCode, text: str = "") -> Iterator[None]:
    """Check that the call in the block fails with that code and a message that contains `text`."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() == code, caught.value.details()
    assert text in caught.value.details()


def listening(pid: int) -> dict[int, str]:
    """Return the IP addresses that a process listens on, by port; gRPC listens on IPv4-mapped IPv6 addresses."""
    found = psutil.Process(pid).net_connections("tcp")
    return {
        entry.laddr.port: entry.laddr.ip.removeprefix("::ffff:")
        for entry in found
        if entry.status == psutil.CONN_LISTEN
    }


class ModelServer:
    """A running model server on free ports, or with gRPC on `port`."""

    def __init__(self, folder: Path, *flags: str, port: int | None = None):
        self.port, self.rest_port = port or free_port(), free_port()
        self.log = folder / f"server-{self.port}.log"
        self.output = folder / f"server-{self.port}.out"
        ports = [f"--port={self.port}", f"--rest_api_port={self.rest_port}"]
        with self.log.open("wb") as log, self.output.open("wb") as output:
            self.process = Popen([*COMMAND, *ports, *flags], stdout=output, stderr=log)
        eventually(self.listens)
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(f"localhost:{self.port}", options)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self._configs: dict[str, model_server_config_pb2.ModelConfig] = {}

    def listens(self) -> bool:
        """Return whether both ports accept connections."""
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as grpc_side, socket.socket() as rest_side:
            return not (
                grpc_side.connect_ex(("127.0.0.1", self.port)) or rest_side.connect_ex(("127.0.0.1", self.rest_port))
            )

    def stop(self) -> int:
        """Stop the process; return its exit code."""
        self.channel.close()
        self.process.send_signal(signal.SIGKILL if REAL_SERVER else signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def predict(self, name: str, _version: int | str | None = None, _signature: str = "", **inputs: object):
        """Send a PredictRequest; return the future of its response.

        Args:
            name: Name of the model.
            _version: Version number or label; None for the newest.
            _signature: Name of the signature; empty for serving_default.
            inputs: Values by input name.
        """
        return self.prediction.Predict.future(predict_request(name, _version, _signature, **inputs), timeout=DEADLINE)

    def added(self, name: str, version: int | str | None = None) -> float:
        """Return the number that an Adder adds."""
        response = self.predict(name, version, x=[0.0]).result()
        return response.outputs["y"].float_val[0]

    def metadata(self, name: str, field: str = "signature_def"):
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=[field])
        request.model_spec.name = name
        return self.prediction.GetModelMetadata(request, timeout=DEADLINE)

    def status(self, name: str, version: int | None = None) -> dict[int, tuple[str, int, str]]:
        """Return state, error code and error message by version."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        if version is not None:
            request.model_spec.version.value = version
        response = self.models.GetModelStatus(request, timeout=DEADLINE)
        name_of = get_model_status_pb2.ModelVersionStatus.State.Name
        return {
            entry.version: (name_of(entry.state), entry.status.error_code, entry.status.error_message)
            for entry in response.model_version_status
        }

    def states(self, name: str) -> dict[int, str]:
        return {version: status[0] for version, status in self.status(name).items()}

    def available(self, name: str) -> set[int]:
        """Return the versions that answer requests."""
        return {version for version, state in self.states(name).items() if state == "AVAILABLE"}

    def configure(self, name: str, base: Path, policy: str = "", labels: dict[str, int] | None = None) -> None:
        """Push a configuration with this model changed and the others unchanged.

        The server answers as soon as one version is loaded; wait for `available` before a test uses another one.

        Args:
            name: Name of the model.
            base: Base path of the model.
            policy: ServableVersionPolicy in text format.
            labels: Versions by label.
        """
        config = model_server_config_pb2.ModelConfig(
            name=name, base_path=str(base), model_platform="tensorflow", version_labels=labels
        )
        text_format.Parse(policy, config.model_version_policy)
        self.push_configs({**self._configs, name: config})

    def remove(self, name: str) -> None:
        """Push a configuration without this model."""
        self.push_configs({other: config for other, config in self._configs.items() if other != name})

    def push_configs(self, configs: dict[str, model_server_config_pb2.ModelConfig]) -> None:
        before, self._configs = self._configs, configs
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.extend(configs.values())
        try:
            self.models.HandleReloadConfigRequest(request, timeout=DEADLINE)
        except grpc.RpcError:
            self._configs = before
            raise

    def rest(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        """Send a request and return status and JSON of the response; `body` is bytes or is converted to JSON."""
        with self.connection() as connection:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, content)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def rest_predict(self, path: str, **body: object) -> tuple[int, object]:
        """Send a Predict request; `path` is relative to /v1/models/."""
        return self.rest("POST", f"/v1/models/{path}:predict", body)

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        with contextlib.closing(
            http.client.HTTPConnection("localhost", self.rest_port, timeout=DEADLINE)
        ) as connection:
            yield connection

    def metric(self, line: str) -> float:
        """Return the value of a line of the metrics; 0 if it is missing."""
        with self.connection() as connection:
            connection.request("GET", "/monitoring/prometheus/metrics")
            text = connection.getresponse().read().decode()
        return next((float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)


def predict_request(name: str, version: int | str | None = None, signature: str = "", **inputs: object):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if isinstance(version, str):
        request.model_spec.version_label = version
    elif version is not None:
        request.model_spec.version.value = version
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return request
