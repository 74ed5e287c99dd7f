"""Start and stop the gRPC and REST servers of the process."""

import argparse
import functools
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TypeVar

from google.protobuf import message, text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.addresses import address
from serving.model_server.batching import BatchScheduler
from serving.model_server.grpc_service import GrpcServer
from serving.model_server.manager import Manager
from serving.model_server.model import Model
from serving.model_server.monitoring import Metrics
from serving.model_server.rest import RestServer
from serving.model_server.service import Service
from serving.model_server.status import ServingError
from serving.protos.model_server_options_pb2 import BatchingParameters, MonitoringConfig

_DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"
_GRACE_SECONDS = 30
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_LOG = logging.getLogger(__name__)
_Message = TypeVar("_Message", bound=message.Message)


def serve(flags: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. The servers listen once every model has an available version.

    Block both signals before starting any thread: a signal handler that sets an event could deadlock on the event's
    lock, so a thread waits for the signals instead.

    Args:
        flags: Parsed flags; see `serving.model_server.flags`.

    Returns:
        Exit code: 0, or 1 if the server could not start.
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
            scheduler = BatchScheduler(
                _read_text_proto(file, BatchingParameters) if file else BatchingParameters(), metrics
            )
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
    _LOG.info("Stopping; waiting for requests in flight")
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
        return _read_text_proto(flags.model_config_file, model_server_config_pb2.ModelServerConfig)
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=flags.model_name, base_path=flags.model_base_path, model_platform="tensorflow"
    )
    return config


def _poll_config(manager: Manager, flags: argparse.Namespace, stopping: threading.Event) -> None:
    """Reapply the file periodically, even if unchanged: a rejected label moves once its version is available."""
    while not stopping.wait(flags.model_config_file_poll_wait_seconds):
        try:
            manager.reload(_config(flags))
        except (ServingError, ValueError) as error:
            _LOG.error("%s not applied: %s", flags.model_config_file, error)


def _metrics_path(flags: argparse.Namespace) -> str | None:
    if not flags.monitoring_config_file:
        return None
    config = _read_text_proto(flags.monitoring_config_file, MonitoringConfig).prometheus_config
    return (config.path or _DEFAULT_METRICS_PATH) if config.enable else None


def _read_text_proto(path: str, message_class: type[_Message]) -> _Message:
    """Read a message in protobuf text format.

    Raises:
        ValueError: If the file cannot be read or does not contain such a message.
    """
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), message_class())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(f"{path}: {error}") from None
