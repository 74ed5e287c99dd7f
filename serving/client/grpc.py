"""The model server's gRPC. Connections are kept, spread over the addresses of a name, and retried while time is left.

The gateway asks through AsyncGrpcClient too.
"""

import asyncio
import json
import struct
from collections.abc import Sequence

import grpc

from serving import protos, proxies
from serving.addresses import grpc_target_error
from serving.client.answers import DEFAULT_MODEL, Answer, Model, ModelChoice, ranked
from serving.client.base import AsyncClient, Client, PhotoLike, normalised
from serving.client.errors import (
    BadAnswer,
    ClientError,
    NotServed,
    Refused,
    TimedOut,
    Unavailable,
    WrongAddress,
    is_unknown_label,
)

TIMEOUT = 30.0  # seconds

_SERVICE_CONFIG = {
    # A headless service has an address for each model server.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            # gRPC adds jitter, and gives up at the deadline.
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
    # Requests learn that a server is gone without a word. No pings without requests: servers take that for an attack.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Or a server that comes back would be waited for as long as it was away.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # The default is 30 s, for which a new server behind a headless service would wait for its first request.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.max_receive_message_length", -1),
]


class GrpcClient(Client):
    """Asks a model server.

    Args:
        target: `host:port`, or any other target of gRPC.
        model: which is asked.
        timeout: seconds for a request, retries included.

    Raises:
        Refused: the environment names a proxy that cannot be used.
        WrongAddress: `target` is a URL, or has no possible port.
    """

    def __init__(self, target: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._asked = model
        self._timeout = timeout
        self._via = proxies.through(target)
        self._channel = grpc.insecure_channel(_checked(target), _options(target))
        self._predict = _method(self._channel)

    def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See Client."""
        request = _request(normalised(photos), self._asked)
        try:
            response = self._predict(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _client_error(error, self._via) from None
        return _answers(response, len(photos), top_k)

    def close(self) -> None:
        """See Client."""
        self._channel.close()


class AsyncGrpcClient(AsyncClient):
    """As GrpcClient, for asyncio."""

    def __init__(self, target: str, model: ModelChoice = DEFAULT_MODEL, timeout: float = TIMEOUT):
        self._asked = model
        self._timeout = timeout
        self._via = proxies.through(target)
        self._channel = grpc.aio.insecure_channel(_checked(target), _options(target))
        self._predict = _method(self._channel)

    async def predict_many(self, photos: Sequence[PhotoLike], top_k: int | None = None) -> list[Answer]:
        """See AsyncClient."""
        return await self.ask(await asyncio.to_thread(normalised, photos), self._asked, self._timeout, top_k)

    async def ask(
        self,
        photos: Sequence[bytes],
        model: ModelChoice,
        timeout: float,
        top_k: int | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> list[Answer]:
        """As `predict_many`, for photos that are normalised already.

        Args:
            photos: JPEG or PNG bytes, as `serving.photo` makes them.
            model: which is asked, whatever the client was made for.
            timeout: seconds, retries included.
            top_k: how many breeds to answer; None: all.
            metadata: sent beside the request.

        Raises:
            ClientError: there is no answer.
        """
        try:
            response = await self._predict(_request(photos, model), timeout=timeout, metadata=tuple(metadata))
        except grpc.RpcError as error:
            raise _client_error(error, self._via) from None
        return _answers(response, len(photos), top_k)

    async def close(self) -> None:
        """See AsyncClient."""
        await self._channel.close()


def _options(target: str) -> list[tuple[str, str | int]]:
    try:
        return [*_OPTIONS, *proxies.grpc_options(target)]
    except proxies.ProxyError as error:
        raise Refused(str(error)) from None


def _checked(target: str) -> str:
    if problem := grpc_target_error(target):
        raise WrongAddress(f"{target} is no address of gRPC: {problem}; write HOST:PORT")
    return target


def _method(channel):
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
                raise ValueError("outputs of other shapes than asked for")
        values = _floats(probabilities)
        names = [name.decode() for name in breeds.string_val]
        rows = [slice(row * columns, (row + 1) * columns) for row in range(photos)]
        return [Answer(model, ranked(names[row], values[row], top_k)) for row in rows]
    except (ValueError, IndexError, struct.error) as error:
        raise BadAnswer(f"{model.name} version {model.version} is no breed classifier of ours: {error}") from None


def _floats(tensor: protos.TensorProto) -> Sequence[float]:
    """TensorFlow Serving writes values, or with --enable_serialization_as_tensor_content their bytes."""
    if tensor.tensor_content:
        return struct.unpack(f"<{len(tensor.tensor_content) // 4}f", tensor.tensor_content)
    return tensor.float_val


def _client_error(error: grpc.RpcError, via: str) -> ClientError:
    code, text = error.code(), error.details() or "no reason given"
    if code is grpc.StatusCode.NOT_FOUND or is_unknown_label(text):
        return NotServed(f"the model server does not serve that: {text}")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return Unavailable(f"the model server is not available{via}: {text}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(f"the model server did not answer in time{via}: {text}")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
        return Refused(f"the model server refuses the request: {text}")
    return BadAnswer(f"the model server failed ({code.name}){via}: {text}")
