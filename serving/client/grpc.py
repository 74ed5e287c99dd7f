"""Clients of a model server's gRPC API.

A client keeps its connections, spreads requests over all addresses of a host name, and retries until the deadline.
The gateway uses AsyncGrpcClient.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc

from serving import protos, proxies
from serving.addresses import grpc_target_error
from serving.client.answers import DEFAULT_MODEL, Answer, Model, ModelChoice, rank
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

TIMEOUT = 30.0  # seconds

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
        self._predict = _predict_method(self._channel)

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        request = _request(normalize_photos(photos), self._model)
        try:
            response = self._predict(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _client_error(error, self._via) from None
        return _answers(response, len(photos), top_k)

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
        self._predict = _predict_method(self._channel)

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
        try:
            response = await self._predict(_request(photos, model), timeout=timeout, metadata=tuple(metadata))
        except grpc.RpcError as error:
            raise _client_error(error, self._via) from None
        return _answers(response, len(photos), top_k)

    async def close(self) -> None:
        """See Client."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()


def _channel_options(target: str) -> list[tuple[str, str | int]]:
    try:
        return [*_OPTIONS, *proxies.grpc_options(target)]
    except proxies.ProxyError as error:
        raise RequestRejected(str(error)) from None


def _check_target(target: str) -> str:
    if problem := grpc_target_error(target):
        raise WrongAddress(f"{target}: not a gRPC address: {problem}; write HOST:PORT")
    return target


def _predict_method(channel):
    return channel.unary_unary(
        protos.PREDICT, protos.PredictRequest.SerializeToString, protos.PredictResponse.FromString
    )


def _request(photos: Sequence[bytes], model: ModelChoice) -> protos.PredictRequest:
    request = protos.PredictRequest()
    request.model_spec.name = model.name
    if model.version is not None:
        request.model_spec.version.value = model.version
    elif model.label is not None:
        request.model_spec.version_label = model.label
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
        values = _floats(probabilities)
        names = [name.decode() for name in breeds.string_val]
        rows = [slice(row * columns, (row + 1) * columns) for row in range(photos)]
        return [Answer(model, rank(names[row], values[row], top_k)) for row in rows]
    except (ValueError, IndexError, struct.error) as error:
        raise BadResponse(f"{model.name} version {model.version} is not a catbreeds model: {error}") from None


def _floats(tensor: protos.TensorProto) -> Sequence[float]:
    """Return the values of a tensor, which --enable_serialization_as_tensor_content packs into bytes."""
    if tensor.tensor_content:
        return struct.unpack(f"<{len(tensor.tensor_content) // 4}f", tensor.tensor_content)
    return tensor.float_val


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
