"""Clients of a model server's gRPC API.

A client keeps its connections, spreads requests over all addresses of a host name, and retries until the deadline.
The gateway uses AsyncGrpcClient.
"""

import asyncio
import json
import struct
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

import grpc

from serving import protos, proxies
from serving.addresses import grpc_target_error
from serving.client.answers import DEFAULT_MODEL, Answer, Model, ModelChoice, answer_of
from serving.client.base import Client, PhotoLike, normalize_photos
from serving.client.errors import (
    BadResponse,
    ClientError,
    NotServed,
    RequestRejected,
    TimedOut,
    Unavailable,
    WrongAddress,
    is_unknown_label,
)
from serving.model_files import CLIENT_OUTPUTS, DEFAULT_SIGNATURE, EXPLAIN_SIGNATURE, signature_to_request

TIMEOUT = 30.0  # seconds

# TensorFlow Serving's error if the output filter names an output that the signature does not have.
_UNKNOWN_OUTPUT = "output tensor alias not found in signature"

_SERVICE_CONFIG = {
    # The name of a headless Service resolves to one address per model server.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            # gRPC adds jitter, and stops at the deadline.
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # Detects a server that disappeared without closing the connection. No pings while idle: servers reject those.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # With gRPC's default, the wait for a restarted server grows with the length of its outage.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # With the default of 30 s, a new server behind a headless Service would get no requests for that long.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.max_receive_message_length", -1),
]


class GrpcClient(Client):
    """Client of a model server's gRPC API.

    Args:
        target: Address of the model server, `host:port` or any other gRPC target.
        model: Model to query.
        timeout: Seconds for a request, including retries.

    Raises:
        RequestRejected: If the environment sets a proxy that cannot be used.
        WrongAddress: If `target` is a URL, or its port is missing or out of range.
    """

    def __init__(self, target: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._model = model
        self._timeout = timeout
        self._via = proxies.through(target)
        self._channel = grpc.insecure_channel(_check_target(target), _channel_options(target))
        self._predict, self._metadata = _methods(self._channel)
        self._selections = _Selections()

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        request = _request(normalize_photos(photos), self._model)
        deadline = time.monotonic() + self._timeout
        try:
            if (selection := self._selections.of(self._model)) is None:
                selection = self._read_signatures(deadline)
            try:
                response = self._send(request, selection, deadline)
            except grpc.RpcError as error:
                if (fallback := _fallback(error, selection)) is None:
                    raise
                self._read_signatures(deadline)
                response = self._send(request, fallback, deadline)
        except grpc.RpcError as error:
            raise _client_error(error, self._via) from None
        self._selections.update(self._model, response)
        return _answers(response, len(photos), top_k)

    def _read_signatures(self, deadline: float) -> "_Selection":
        timeout = deadline - time.monotonic()
        return self._selections.add(self._model, self._metadata(_metadata_request(self._model), timeout=timeout))

    def _send(self, request: protos.PredictRequest, selection: "_Selection", deadline: float) -> protos.PredictResponse:
        selection.apply(request)
        return self._predict(request, timeout=deadline - time.monotonic())

    def close(self) -> None:
        """See Client."""
        self._channel.close()


class AsyncGrpcClient:
    """GrpcClient for asyncio. Create and use it in one event loop."""

    def __init__(self, target: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._model = model
        self._timeout = timeout
        self._via = proxies.through(target)
        self._channel = grpc.aio.insecure_channel(_check_target(target), _channel_options(target))
        self._predict, self._metadata = _methods(self._channel)
        self._selections = _Selections()

    async def predict(self, photo: PhotoLike, top_k: int | None = None) -> Answer:
        """See Client."""
        return (await self.predict_many([photo], top_k))[0]

    async def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        return await self.predict_normalized(
            await asyncio.to_thread(normalize_photos, photos), self._model, self._timeout, top_k
        )

    async def predict_normalized(
        self,
        photos: Sequence[bytes],
        model: ModelChoice,
        timeout: float,
        top_k: int | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> list[Answer]:
        """Predict the breeds of photos that are already normalized.

        Args:
            photos: JPEG or PNG bytes, as `serving.photo_normalization` creates them.
            model: Model to query, instead of the client's own.
            timeout: Seconds for the request, including retries.
            top_k: Number of breeds to return; None returns all.
            metadata: gRPC metadata to send with the request.

        Raises:
            ClientError: If the server returns no predictions.
        """
        request, deadline, metadata = _request(photos, model), time.monotonic() + timeout, tuple(metadata)
        try:
            if (selection := self._selections.of(model)) is None:
                selection = await self._read_signatures(model, deadline, metadata)
            try:
                response = await self._send(request, selection, deadline, metadata)
            except grpc.RpcError as error:
                if (fallback := _fallback(error, selection)) is None:
                    raise
                await self._read_signatures(model, deadline, metadata)
                response = await self._send(request, fallback, deadline, metadata)
        except grpc.RpcError as error:
            raise _client_error(error, self._via) from None
        self._selections.update(model, response)
        return _answers(response, len(photos), top_k)

    async def _read_signatures(
        self, model: ModelChoice, deadline: float, metadata: tuple[tuple[str, str], ...]
    ) -> "_Selection":
        timeout = deadline - time.monotonic()
        response = await self._metadata(_metadata_request(model), timeout=timeout, metadata=metadata)
        return self._selections.add(model, response)

    async def _send(
        self,
        request: protos.PredictRequest,
        selection: "_Selection",
        deadline: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> protos.PredictResponse:
        selection.apply(request)
        return await self._predict(request, timeout=deadline - time.monotonic(), metadata=metadata)

    async def close(self) -> None:
        """See Client."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()


class _Selection(NamedTuple):
    """A signature, and its outputs to return; no outputs select all.

    An answer contains only some outputs of `explain`. The embedding is the largest of the others.
    """

    signature: str
    outputs: tuple[str, ...] = ()

    def apply(self, request: protos.PredictRequest) -> None:
        """Request the selected signature and outputs."""
        request.model_spec.signature_name = self.signature
        request.output_filter[:] = self.outputs


class _Selections:
    """The signature and outputs to request for each model choice, so that a prediction takes one call.

    The signatures of a version are read once. If a label or the default moves to a version with the signature
    `explain`, the client notices it from the version in the next answer, which has no prediction set.
    """

    def __init__(self):
        self._by_version: dict[tuple[str, int], _Selection] = {}
        self._last_version: dict[ModelChoice, tuple[str, int]] = {}

    def of(self, choice: ModelChoice) -> _Selection | None:
        """Return the selection for the version that last served `choice`; None if it is unknown."""
        return self._by_version.get(self._last_version.get(choice))

    def add(self, choice: ModelChoice, response: protos.GetModelMetadataResponse) -> _Selection:
        """Store the metadata of the version that serves `choice`, and return its selection."""
        signatures = protos.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def
        signature = signature_to_request(signatures)
        outputs = signatures[signature].outputs
        # Other threads may use the same object, so the version is not read back from `_last_version`.
        version = _version(response)
        selection = _Selection(signature, tuple(name for name in CLIENT_OUTPUTS if name in outputs))
        self._by_version[version] = selection
        self._last_version[choice] = version
        return selection

    def update(self, choice: ModelChoice, response: protos.PredictResponse | protos.GetModelMetadataResponse) -> None:
        """Store the version that sent `response` as the one that serves `choice`."""
        self._last_version[choice] = _version(response)


def _version(response: protos.PredictResponse | protos.GetModelMetadataResponse) -> tuple[str, int]:
    return response.model_spec.name, response.model_spec.version.value


def _fallback(error: grpc.RpcError, selection: _Selection) -> _Selection | None:
    """Return the selection to try next if the version that now serves the model lacks the signature or an output."""
    if selection.signature == EXPLAIN_SIGNATURE and error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return _Selection(DEFAULT_SIGNATURE)
    is_output_missing = error.code() is grpc.StatusCode.INVALID_ARGUMENT and _UNKNOWN_OUTPUT in (error.details() or "")
    return _Selection(selection.signature) if is_output_missing else None


def _channel_options(target: str) -> list[tuple[str, str | int]]:
    try:
        return [*_OPTIONS, *proxies.grpc_options(target)]
    except proxies.ProxyError as error:
        raise RequestRejected(str(error)) from None


def _check_target(target: str) -> str:
    if problem := grpc_target_error(target):
        raise WrongAddress(f"{target}: not a gRPC address: {problem}; write HOST:PORT")
    return target


def _methods(channel):
    """Return the calls Predict and GetModelMetadata."""
    return tuple(
        channel.unary_unary(path, request.SerializeToString, response.FromString)
        for path, request, response in (
            (protos.PREDICT, protos.PredictRequest, protos.PredictResponse),
            (protos.GET_MODEL_METADATA, protos.GetModelMetadataRequest, protos.GetModelMetadataResponse),
        )
    )


def _model_spec(model: ModelChoice) -> protos.ModelSpec:
    spec = protos.ModelSpec(name=model.name)
    if model.version is not None:
        spec.version.value = model.version
    elif model.label is not None:
        spec.version_label = model.label
    return spec


def _metadata_request(model: ModelChoice) -> protos.GetModelMetadataRequest:
    return protos.GetModelMetadataRequest(model_spec=_model_spec(model), metadata_field=["signature_def"])


def _request(photos: Sequence[bytes], model: ModelChoice) -> protos.PredictRequest:
    request = protos.PredictRequest(model_spec=_model_spec(model))
    tensor = request.inputs["image_bytes"]
    tensor.dtype = protos.DataType.DT_STRING
    tensor.tensor_shape.dim.add(size=len(photos))
    tensor.string_val.extend(photos)
    return request


def _answers(response: protos.PredictResponse, photos: int, top_k: int | None) -> list[Answer]:
    model = Model(response.model_spec.name, response.model_spec.version.value)
    try:
        probabilities, breeds = response.outputs["probabilities"], response.outputs["breeds"]
        columns = breeds.tensor_shape.dim[1].size
        for tensor in (probabilities, breeds):
            if [dim.size for dim in tensor.tensor_shape.dim] != [photos, columns]:
                raise ValueError("the outputs have unexpected shapes")
        values = _values(probabilities)
        names = [name.decode() for name in breeds.string_val]
        in_set = _values(response.outputs["in_set"]) if "in_set" in response.outputs else None
        unfamiliar = _values(response.outputs["unfamiliar"]) if "unfamiliar" in response.outputs else None
        rows = [slice(row * columns, (row + 1) * columns) for row in range(photos)]
        return [
            answer_of(
                model,
                names[row],
                values[row],
                None if in_set is None else in_set[row],
                None if unfamiliar is None else unfamiliar[number],
                top_k,
            )
            for number, row in enumerate(rows)
        ]
    except (ValueError, IndexError, struct.error) as error:
        raise BadResponse(f"{model.name} version {model.version} is not a catbreeds model: {error}") from None


def _values(tensor: protos.TensorProto) -> Sequence[float] | Sequence[bool]:
    """Return the values of a tensor, which --enable_serialization_as_tensor_content packs into bytes."""
    is_float = tensor.dtype == protos.DataType.DT_FLOAT
    if tensor.tensor_content:
        size, code = (4, "f") if is_float else (1, "?")
        return struct.unpack(f"<{len(tensor.tensor_content) // size}{code}", tensor.tensor_content)
    return tensor.float_val if is_float else tensor.bool_val


def _client_error(error: grpc.RpcError, via: str) -> ClientError:
    code, text = error.code(), error.details() or "no reason given"
    if code is grpc.StatusCode.NOT_FOUND or is_unknown_label(text):
        return NotServed(f"the model server does not serve the requested model: {text}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return Unavailable(f"the model server is not available{via}: {text}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(f"the model server did not respond in time{via}: {text}")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
        return RequestRejected(f"the model server rejected the request: {text}")
    return BadResponse(f"the model server failed ({code.name}){via}: {text}")
