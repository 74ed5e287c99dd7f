"""One model server as rollout sees it: it takes a configuration, and tells what became of the versions."""

from typing import NamedTuple

import grpc

from serving.rollout.plan import Plan, model_config
from serving.wire.model_management_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    ReloadConfigRequest,
    ReloadConfigResponse,
)

_SERVICE = "/tensorflow.serving.ModelService"


class Unreachable(OSError):
    """Nothing that speaks TensorFlow Serving's API answers at an address."""


class Refused(ValueError):
    """The server wants to serve no such configuration."""


class NotYet(Refused):
    """It loads what it was told to, but moves no label before the version that it is moved to serves."""


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


class ModelServer:
    """Connection to a server; close it.

    Args:
        address: host:port of gRPC.
        name: of the model.
        timeout: seconds that a call may take.
    """

    def __init__(self, address: str, name: str, timeout: float = 30):
        self._name = name
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address)
        self._reload = self._channel.unary_unary(
            f"{_SERVICE}/HandleReloadConfigRequest",
            ReloadConfigRequest.SerializeToString,
            ReloadConfigResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            f"{_SERVICE}/GetModelStatus", GetModelStatusRequest.SerializeToString, GetModelStatusResponse.FromString
        )

    def __enter__(self) -> "ModelServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def push(self, plan: Plan, base_path: str) -> None:
        """Serves `plan` from now on: versions are loaded and unloaded while it answers.

        Raises:
            NotYet: labels have not moved, because a version does not serve yet.
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
        except Refused:  # NOT_FOUND: it has seen none
            return {}
        return {told.version: _state(told) for told in response.model_version_status}

    def _call(self, method, request):
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Unreachable(error.details()) from None
            kind = NotYet if error.code() == grpc.StatusCode.FAILED_PRECONDITION else Refused
            raise kind(f"{error.code().name}: {error.details()}") from None


def _state(told: ModelVersionStatus) -> VersionState:
    ended = told.state == ModelVersionStatus.END
    error = (told.status.error_message or f"error {told.status.error_code}") if told.status.error_code else ""
    return VersionState(told.state == ModelVersionStatus.AVAILABLE, error if ended else "", ended)
