"""The gRPC API: PredictionService, ModelService and the health service."""

import argparse
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.addresses import address
from serving.model_server.manager import Manager
from serving.model_server.service import Service
from serving.model_server.status import ServingError, as_serving_error, invalid

_LOG = logging.getLogger(__name__)
_HEALTHY_SERVICES = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Implementation of Predict and GetModelMetadata; the other methods return UNIMPLEMENTED."""

    def __init__(self, service: Service):
        self._service = service

    def Predict(self, request, context):
        return _respond(context, self._service.predict, request)

    def GetModelMetadata(self, request, context):
        return _respond(context, self._service.metadata, request)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    """Implementation of GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, service: Service, manager: Manager):
        self._service = service
        self._manager = manager

    def GetModelStatus(self, request, context):
        return _respond(context, self._service.status, request)

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

        return _respond(context, reload, request)


def _respond(context: grpc.ServicerContext, method: Callable, request):
    try:
        return method(request)
    except Exception as error:
        if not isinstance(error, ServingError):
            _LOG.exception("unexpected error")
        failure = as_serving_error(error)
        context.abort(failure.code, failure.message)


class GrpcServer:
    """gRPC server that listens once it is created; `stop` lets requests in flight finish.

    Args:
        service: Implementation of the requests.
        manager: Model manager that applies new configurations.
        flags: Parsed flags: `host`, `port`, `grpc_socket_path`, `grpc_channel_arguments`, `grpc_max_threads`,
            `enable_grpc_healthcheck_service`.

    Raises:
        RuntimeError: If the server cannot listen on the port or the socket.
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
            health_pb2_grpc.add_HealthServicer_to_server(_health_servicer(), self._server)
        if flags.port:
            self._server.add_insecure_port(address(flags.host, flags.port))
        if flags.grpc_socket_path:
            self._server.add_insecure_port(f"unix:{flags.grpc_socket_path}")
        self._server.start()

    def stop(self, grace: float) -> threading.Event:
        """Stop accepting requests, including health checks.

        Args:
            grace: Seconds after which requests in flight are canceled.

        Returns:
            Event that is set when no request is in flight.
        """
        return self._server.stop(grace)


def _health_servicer() -> health.HealthServicer:
    """Return a health service that reports SERVING: the gRPC server starts only after the models are loaded."""
    servicer = health.HealthServicer()
    for service in _HEALTHY_SERVICES:
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    return servicer


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Parse `name=value,name=value`; integer values become int."""
    arguments = []
    for argument in filter(None, text.split(",")):
        name, _, value = argument.partition("=")
        with contextlib.suppress(ValueError):
            value = int(value)
        arguments.append((name, value))
    return arguments
