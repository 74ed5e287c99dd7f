"""One model server as rollout sees it: it takes a configuration, and tells what became of the versions."""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import grpc

from serving import proxies
from serving.client.errors import is_unknown_label
from serving.protos.model_management_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    ReloadConfigRequest,
    ReloadConfigResponse,
)
from serving.rollout.fleet import Unreachable
from serving.rollout.serving_config import ServingConfig, model_config

_SERVICE = "/tensorflow.serving.ModelService"
_PREDICTION_SERVICE = "/tensorflow.serving.PredictionService"
# They say nothing of the configuration: the server is away or out of order, or a proxy before it refuses the call.
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own when a server has no thread left
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


class Refused(ValueError):
    """The server takes no such configuration, or does not know what it was asked for."""


class NotYet(Refused):
    """A label would move to a version that does not serve: nothing of the configuration was taken."""


class NotThere(Refused):
    """It serves no such model, version or label."""


class VersionState(NamedTuple):
    """What became of a version.

    Attributes:
        available: it answers requests.
        error: why it could not be loaded; "" if nothing is wrong.
        gone: it is not in the server's memory.
    """

    available: bool
    error: str
    gone: bool


class ModelServerClient:
    """Connection to a server; close it.

    Args:
        address: host:port of gRPC.
        name: of the model.
        timeout: seconds that a call may take.

    Raises:
        Unreachable: the environment names a proxy that cannot be used.
    """

    def __init__(self, address: str, name: str, timeout: float = 30):
        self._name = name
        self._timeout = timeout
        try:
            self._channel = grpc.insecure_channel(address, proxies.grpc_options(address))
        except proxies.ProxyError as error:
            raise Unreachable(str(error)) from None
        self._via = proxies.through(address)

        def method(path, request, response):
            return self._channel.unary_unary(path, request.SerializeToString, response.FromString)

        self._reload = method(f"{_SERVICE}/HandleReloadConfigRequest", ReloadConfigRequest, ReloadConfigResponse)
        self._status = method(f"{_SERVICE}/GetModelStatus", GetModelStatusRequest, GetModelStatusResponse)
        self._metadata = method(
            f"{_PREDICTION_SERVICE}/GetModelMetadata", GetModelMetadataRequest, GetModelMetadataResponse
        )

    def __enter__(self) -> "ModelServerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def push(self, plan: ServingConfig, base_path: str) -> None:
        """Serves `plan` from now on: versions are loaded and unloaded while it answers.

        Raises:
            NotYet: a label would move to a version that does not serve.
            Refused: the configuration is bad.
            Unreachable: it does not answer.
        """
        request = ReloadConfigRequest(config=model_config(self._name, base_path, plan.versions, plan.labels))
        self._call(self._reload, request)

    def states(self) -> dict[int, VersionState]:
        """Each version that the server has seen.

        Raises:
            Unreachable: it does not answer.
        """
        request = GetModelStatusRequest()
        request.model_spec.name = self._name
        try:
            response = self._call(self._status, request)
        except NotThere:
            return {}
        return {told.version: _state(told) for told in response.model_version_status}

    def labels(self, names: Iterable[str]) -> dict[str, int]:
        """Label -> version that answers to it, for those of `names` to which one does.

        Raises:
            Unreachable: it does not answer.
        """
        found = {}
        for label in names:
            request = GetModelMetadataRequest(metadata_field=["signature_def"])
            request.model_spec.name, request.model_spec.version_label = self._name, label
            with contextlib.suppress(NotThere):
                found[label] = self._call(self._metadata, request).model_spec.version.value
        return found

    def _call(self, method, request):
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if code in _NO_ANSWER:
                raise Unreachable(f"{code.name}: {text}{self._via}") from None
            kind = Refused
            if code == grpc.StatusCode.FAILED_PRECONDITION:
                kind = NotYet
            elif code == grpc.StatusCode.NOT_FOUND or is_unknown_label(text):
                kind = NotThere
            raise kind(f"{code.name}: {text}") from None


def _state(told: ModelVersionStatus) -> VersionState:
    ended = told.state == ModelVersionStatus.END
    error = (told.status.error_message or f"error {told.status.error_code}") if told.status.error_code else ""
    return VersionState(told.state == ModelVersionStatus.AVAILABLE, error if ended else "", ended)
