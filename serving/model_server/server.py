"""The process: from flags to servers, and their end."""

import argparse
import functools
import logging
import signal
import sys
import threading

from tensorflow_serving.config import model_server_config_pb2

from serving.addresses import address
from serving.model_server.batching import BatchScheduler
from serving.model_server.grpc_service import GrpcServer
from serving.model_server.manager import Manager
from serving.model_server.messages import BatchingParameters, MonitoringConfig, read_text
from serving.model_server.model import Model
from serving.model_server.monitoring import Metrics
from serving.model_server.rest import RestServer
from serving.model_server.service import Service
from serving.model_server.status import ServingError

_METRICS_PATH = "/monitoring/prometheus/metrics"
_GRACE_SECONDS = 30
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_LOG = logging.getLogger(__name__)


def serve(flags: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. It listens when every model has a version that serves.

    Args:
        flags: see `serving.model_server.flags`.

    The signals must be blocked in the calling thread, before there are others: a handler that sets an event can
    meet the event's lock taken.

    Returns:
        Exit code: 0, or 1 if it could not start.
    """
    stopping = threading.Event()
    threading.Thread(target=_await_signal, args=(stopping,), daemon=True).start()
    metrics = Metrics()
    grpc_server = rest_server = None
    try:
        metrics_path = _metrics_path(flags)
        scheduler = None
        if flags.enable_batching:
            file = flags.batching_parameters_file
            scheduler = BatchScheduler(read_text(file, BatchingParameters) if file else BatchingParameters(), metrics)
        load = functools.partial(Model, flags=flags, scheduler=scheduler, metrics=metrics)
        manager = Manager(load, flags)
        manager.start()
        manager.reload(_config(flags), lambda: not stopping.is_set())
        service = Service(manager, metrics)
        if flags.port or flags.grpc_socket_path:
            grpc_server = GrpcServer(service, manager, flags)
            _LOG.info("Running gRPC ModelServer at %s %s", address(flags.host, flags.port), flags.grpc_socket_path)
        if flags.rest_api_port:
            rest_server = RestServer(service, metrics, metrics_path, flags)
            threading.Thread(target=rest_server.serve_forever, kwargs={"poll_interval": 0.1}).start()
            _LOG.info("Exporting HTTP/REST API at:%s", address(flags.host, flags.rest_api_port))
    except (ServingError, ValueError, RuntimeError, OSError) as error:
        if stopping.is_set():
            return 0
        print(f"Failed to start server. Error: {error}", file=sys.stderr)
        return 1
    if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
        threading.Thread(target=_poll_config, args=(manager, flags, stopping), daemon=True).start()
    stopping.wait()
    _LOG.info("Stopping: requests in flight finish")
    manager.stop()
    drained = grpc_server and grpc_server.stop(_GRACE_SECONDS)
    if rest_server:
        rest_server.stop()
    if drained:
        drained.wait()
    return 0


def _await_signal(stopping: threading.Event) -> None:
    signal.sigwait(_STOP_SIGNALS)
    stopping.set()


def _config(flags: argparse.Namespace) -> model_server_config_pb2.ModelServerConfig:
    if flags.model_config_file:
        return read_text(flags.model_config_file, model_server_config_pb2.ModelServerConfig)
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=flags.model_name, base_path=flags.model_base_path, model_platform="tensorflow"
    )
    return config


def _poll_config(manager: Manager, flags: argparse.Namespace, stopping: threading.Event) -> None:
    """Applies the file again and again: a label that was refused is moved when its version serves."""
    while not stopping.wait(flags.model_config_file_poll_wait_seconds):
        try:
            manager.reload(_config(flags))
        except (ServingError, ValueError) as error:
            _LOG.error("%s not applied: %s", flags.model_config_file, error)


def _metrics_path(flags: argparse.Namespace) -> str | None:
    if not flags.monitoring_config_file:
        return None
    config = read_text(flags.monitoring_config_file, MonitoringConfig).prometheus_config
    return (config.path or _METRICS_PATH) if config.enable else None
