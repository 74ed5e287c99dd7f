"""The REST API, over HTTP/1.1."""

import argparse
import contextlib
import json
import logging
import re
import socket
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving.addresses import listen
from serving.model_server.json_tensors import JsonRequest
from serving.model_server.monitoring import Metrics
from serving.model_server.service import Service
from serving.model_server.status import Code, ServingError, as_serving_error, invalid

_LOG = logging.getLogger(__name__)
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.I)
_MODEL = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/metadata)?", re.I)
_BACKLOG = 128
_MAX_BYTES = 2**31 - 1
_IDLE_SECONDS = 60
_HTTP_CODES = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}


class RestServer(ThreadingHTTPServer):
    """HTTP server that listens once it is created.

    `serve_forever` handles requests; `stop` lets requests in flight finish.

    Args:
        service: Implementation of the requests.
        metrics: Metrics that are served at `metrics_path`.
        metrics_path: URL path of the metrics; None disables them.
        flags: Parsed flags: `host`, `rest_api_port`, `rest_api_num_threads`, `rest_api_timeout_in_ms`.

    Raises:
        OSError: If the server cannot listen on the address.
    """

    daemon_threads = False

    def __init__(self, service: Service, metrics: Metrics, metrics_path: str | None, flags: argparse.Namespace):
        self.service = service
        self.metrics = metrics
        self.metrics_path = metrics_path
        self.timeout_seconds = flags.rest_api_timeout_in_ms / 1000
        self.request_slots = threading.BoundedSemaphore(flags.rest_api_num_threads)
        self.stopping = False
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__((flags.host, flags.rest_api_port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen(flags.host, flags.rest_api_port, _BACKLOG)

    def stop(self) -> None:
        """Stop accepting requests, and wait for those in flight."""
        self.shutdown()
        with self._lock:
            self.stopping = True
            for connection in self._connections:
                _stop_reading(connection)
        self.server_close()

    def finish_request(self, request, client_address) -> None:
        """Handle a connection; http.server calls this method in a separate thread."""
        with self._lock:
            self._connections.add(request)
            if self.stopping:
                _stop_reading(request)
        try:
            super().finish_request(request, client_address)
        finally:
            with self._lock:
                self._connections.discard(request)

    def handle_error(self, request, client_address) -> None:
        """Log the exception; connections that clients closed are logged as debug messages only."""
        level = logging.DEBUG if isinstance(sys.exception(), ConnectionError) else logging.ERROR
        _LOG.log(level, "connection from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_SECONDS
    server: RestServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == self.server.metrics_path:
            self._send(200, "text/plain", self.server.metrics.text())
        else:
            self._respond(path, b"")

    def do_POST(self) -> None:
        try:
            body = self._read_body()
            if body and "gzip" in self.headers.get("Content-Encoding", "").lower():
                body = _decompress(body)
        except ValueError:
            self.close_connection = True  # the start of the next request is unknown
            self._send_json(400, {"error": "Malformed request: invalid Content-Length, chunked encoding or gzip data"})
            return
        if body is None:
            self.close_connection = True
            self._send_json(413, {"error": f"Request is larger than {_MAX_BYTES} bytes"})
            return
        self._respond(self.path.partition("?")[0], body)

    def _respond(self, path: str, body: bytes) -> None:
        if not path.lower().startswith("/v1/"):
            self._send_json(404, {"error": "Not Found"})
            return
        try:
            with self.server.request_slots:
                response = self._route(path, body)
        except Exception as error:
            if not isinstance(error, ServingError):
                _LOG.exception("unexpected error")
            failure = as_serving_error(error)
            self._send_json(_HTTP_CODES.get(failure.code, 500), {"error": failure.message})
        else:
            self._send_json(200, response)

    def _route(self, path: str, body: bytes) -> dict:
        predict, model = _PREDICT.fullmatch(path), _MODEL.fullmatch(path)
        if self.command == "POST" and predict:
            method = predict["method"].lower()
            if method != "predict":
                raise ServingError(Code.UNIMPLEMENTED, f"{method} is not supported, use predict")
            return self._predict(_spec(predict), body)
        if self.command == "GET" and model:
            return self._metadata(_spec(model)) if model["metadata"] else self._status(_spec(model))
        raise invalid(f"Malformed request: {self.command} {path}")

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> dict:
        with self.server.service.predicting(spec, "REST") as model:
            request = JsonRequest.parse(body)
            try:
                signature = model.signature(request.signature_name)
            except ServingError:
                name = request.signature_name or "serving_default"
                raise invalid(f'Serving signature name: "{name}" not found in signature def') from None
            inputs = request.arrays(signature)
            outputs = model.predict(request.signature_name, inputs, timeout=self.server.timeout_seconds)
            return request.response(outputs)

    def _metadata(self, spec: model_pb2.ModelSpec) -> dict:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self.server.service.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {"model_spec": _dict(response.model_spec), "metadata": {"signature_def": _dict(signatures)}}

    def _status(self, spec: model_pb2.ModelSpec) -> dict:
        if not spec.name:
            raise invalid("Missing model name in request.")
        return _dict(self.server.service.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec)))

    def _read_body(self) -> bytes | None:
        """Read the body; return None if it is too large.

        Raises:
            ValueError: If the length or the chunked encoding is invalid.
        """
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._read_chunks()
        length = int(self.headers.get("Content-Length", 0))
        if length < 0:
            raise ValueError(length)
        if length > _MAX_BYTES:
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            raise ValueError("the client closed the connection")
        return body

    def _read_chunks(self) -> bytes | None:
        body = bytearray()
        while size := int(self.rfile.readline(1024).partition(b";")[0], 16):
            if size < 0 or len(body) + size > _MAX_BYTES:
                return None
            body += self.rfile.read(size)
            self.rfile.readline(3)
        while self.rfile.readline(65_537).strip():  # trailers
            pass
        return bytes(body)

    def _send_json(self, code: int, document: dict) -> None:
        self._send(code, "application/json", json.dumps(document, indent=4))

    def _send(self, code: int, content_type: str, text: str) -> None:
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.server.stopping:
            self.send_header("Connection", "close")  # makes http.server close the connection
        self._headers_buffer.append(b"\r\n")
        content, self._headers_buffer = b"".join([*self._headers_buffer, content]), []
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        _LOG.debug(format, *arguments)


def _decompress(body: bytes) -> bytes | None:
    """Decompress a gzip body as TensorFlow Serving does; return None if the content is too large.

    Raises:
        ValueError: If the data is corrupt or truncated.
    """
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = stream.decompress(body, _MAX_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(content) > _MAX_BYTES:
        return None
    if not stream.eof:
        raise ValueError("truncated")
    return content


def _stop_reading(connection: socket.socket) -> None:
    """Stop waiting for the next request of a connection. A request that has already arrived is still handled."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def _spec(match: re.Match) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=match["name"] or "")
    if match["version"]:
        if int(match["version"]) >= 2**63:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = match["label"]
    return spec


def _dict(message) -> dict:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
