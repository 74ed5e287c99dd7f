"""Client for the management calls of one model server: reload the configuration, read version states and labels."""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import grpc

from serving import proxies
from serving.client.errors import is_unknown_label
from serving.protos import GET_MODEL_METADATA, GetModelMetadataRequest, GetModelMetadataResponse
from serving.protos.model_management_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    ReloadConfigRequest,
    ReloadConfigResponse,
)
from serving.rollout.fleet import Unreachable
from serving.rollout.serving_config import ServingConfig, model_server_config

_SERVICE = "/tensorflow.serving.ModelService"
# Codes that do not concern the configuration: the server is down or broken, or a proxy rejects the call.
_UNREACHABLE_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # set by gRPC when the server has no free thread
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)


class CallRejected(ValueError):
    """The server rejects the request."""


class VersionNotAvailable(CallRejected):
    """A label would move to a version that is not available; the server applied no part of the configuration."""


class NotFound(CallRejected):
    """The server has no such model, version or label."""


class VersionState(NamedTuple):
    """State of a version on a server.

    Attributes:
        available: Whether it serves requests.
        error: Reason why it could not be loaded; "" without an error.
        unloaded: Whether it is no longer in memory, or was never loaded.
    """

    available: bool
    error: str
    unloaded: bool


class ModelServerClient:
    """gRPC connection to a model server, for use as a context manager.

    Args:
        address: Address of the gRPC API, host:port.
        model_name: Name of the model.
        timeout: Time limit of a call, in seconds.

    Raises:
        Unreachable: If the environment names a proxy that cannot be used.
    """

    def __init__(self, address: str, model_name: str, timeout: float = 30):
        self._model_name = model_name
        self._timeout = timeout
        try:
            self._channel = grpc.insecure_channel(address, proxies.grpc_options(address))
        except proxies.ProxyError as error:
            raise Unreachable(str(error)) from None
        self._proxy_note = proxies.through(address)

        def method(path, request, response):
            return self._channel.unary_unary(path, request.SerializeToString, response.FromString)

        self._reload = method(f"{_SERVICE}/HandleReloadConfigRequest", ReloadConfigRequest, ReloadConfigResponse)
        self._status = method(f"{_SERVICE}/GetModelStatus", GetModelStatusRequest, GetModelStatusResponse)
        self._metadata = method(GET_MODEL_METADATA, GetModelMetadataRequest, GetModelMetadataResponse)

    def __enter__(self) -> "ModelServerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def reload_config(self, config: ServingConfig, base_path: str) -> None:
        """Apply `config`: the server loads and unloads versions while it continues to serve.

        Raises:
            VersionNotAvailable: If a label would move to a version that is not available.
            CallRejected: If the configuration is invalid.
            Unreachable: If the server does not respond.
        """
        message = model_server_config(self._model_name, base_path, config.versions, config.labels)
        self._call(self._reload, ReloadConfigRequest(config=message))

    def version_states(self) -> dict[int, VersionState]:
        """Return the state of each version that the server has ever been configured with.

        Raises:
            Unreachable: If the server does not respond.
        """
        request = GetModelStatusRequest()
        request.model_spec.name = self._model_name
        try:
            response = self._call(self._status, request)
        except NotFound:
            return {}
        return {status.version: _version_state(status) for status in response.model_version_status}

    def labels(self, names: Iterable[str]) -> dict[str, int]:
        """Return the version by label, for the labels in `names` whose version is available.

        Raises:
            Unreachable: If the server does not respond.
        """
        versions = {}
        for label in names:
            request = GetModelMetadataRequest(metadata_field=["signature_def"])
            request.model_spec.name, request.model_spec.version_label = self._model_name, label
            with contextlib.suppress(NotFound):
                versions[label] = self._call(self._metadata, request).model_spec.version.value
        return versions

    def _call(self, method, request):
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if code in _UNREACHABLE_CODES:
                raise Unreachable(f"{code.name}: {text}{self._proxy_note}") from None
            error_type = CallRejected
            if code == grpc.StatusCode.FAILED_PRECONDITION:
                error_type = VersionNotAvailable
            elif code == grpc.StatusCode.NOT_FOUND or is_unknown_label(text):
                error_type = NotFound
            raise error_type(f"{code.name}: {text}") from None


def _version_state(response: ModelVersionStatus) -> VersionState:
    ended = response.state == ModelVersionStatus.END
    status = response.status
    error = (status.error_message or f"error {status.error_code}") if status.error_code else ""
    return VersionState(response.state == ModelVersionStatus.AVAILABLE, error if ended else "", ended)
