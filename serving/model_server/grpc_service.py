"""The gRPC side: PredictionService, ModelService and health."""

import argparse
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent import futures

import grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.addresses import address
from serving.model_server.manager import Manager
from serving.model_server.messages import HealthCheckRequest, HealthCheckResponse
from serving.model_server.service import Service
from serving.model_server.status import Code, ServingError, as_serving_error, invalid

_LOG = logging.getLogger(__name__)
_SERVING = 1
_SERVICES = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the others are UNIMPLEMENTED."""

    def __init__(self, service: Service):
        self._service = service

    def Predict(self, request, context):
        return _answer(context, self._service.predict, request)

    def GetModelMetadata(self, request, context):
        return _answer(context, self._service.metadata, request)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, service: Service, manager: Manager):
        self._service = service
        self._manager = manager

    def GetModelStatus(self, request, context):
        return _answer(context, self._service.status, request)

    def HandleReloadConfigRequest(self, request, context):
        def reload(request):
            if request.config.WhichOneof("config") != "model_config_list":
                raise invalid(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported"
                )
            self._manager.reload(request.config, context.is_active)
            response = model_management_pb2.ReloadConfigResponse()
            response.status.SetInParent()
            return response

        return _answer(context, reload, request)


def _answer(context: grpc.ServicerContext, method: Callable, request):
    try:
        return method(request)
    except Exception as error:
        if not isinstance(error, ServingError):
            _LOG.exception("unexpected")
        failure = as_serving_error(error)
        context.abort(failure.code, failure.message)


class GrpcServer:
    """Listens from the start; `stop` lets requests in flight finish.

    Args:
        service: answers.
        manager: takes configurations.
        flags: `host`, `port`, `grpc_socket_path`, `grpc_channel_arguments`, `grpc_max_threads`,
            `enable_grpc_healthcheck_service`.

    Raises:
        RuntimeError: it cannot listen there.
    """

    def __init__(self, service: Service, manager: Manager, flags: argparse.Namespace):
        self._server = grpc.server(
            futures.ThreadPoolExecutor(flags.grpc_max_threads, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                *_channel_arguments(flags.grpc_channel_arguments),
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(service), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(service, manager), self._server)
        if flags.enable_grpc_healthcheck_service:
            check = grpc.unary_unary_rpc_method_handler(
                _check_health, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
            )
            handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
            self._server.add_generic_rpc_handlers((handler,))
        if flags.port:
            self._server.add_insecure_port(address(flags.host, flags.port))
        if flags.grpc_socket_path:
            self._server.add_insecure_port(f"unix:{flags.grpc_socket_path}")
        self._server.start()

    def stop(self, grace: float) -> threading.Event:
        """Takes no more requests, those for health included.

        Args:
            grace: seconds after which requests in flight are broken off.

        Returns:
            Set when none is in flight any more.
        """
        return self._server.stop(grace)


def _check_health(request: HealthCheckRequest, context: grpc.ServicerContext) -> HealthCheckResponse:
    if request.service not in _SERVICES:
        context.abort(Code.NOT_FOUND, "")
    return HealthCheckResponse(status=_SERVING)


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """`name=value,name=value`; whole numbers are numbers."""
    arguments = []
    for argument in filter(None, text.split(",")):
        name, _, value = argument.partition("=")
        with contextlib.suppress(ValueError):
            value = int(value)
        arguments.append((name, value))
    return arguments
