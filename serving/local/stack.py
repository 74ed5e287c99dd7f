"""Programs of the local serving stack: model server, gateway and page. Each gets the address of the previous one."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from serving.addresses import LOOPBACK, address, local_address
from serving.labels import STABLE
from serving.local.processes import Program
from serving.precision import FLOAT32, environment

TENSORFLOW_MODEL_SERVER = "tensorflow_model_server"
# Time limit for loading a model, for a model server that runs for a single client.
MODEL_SERVER_SECONDS = 300
# Gateway and page return 503 until they are ready. These statuses mean that another program uses the port or that the
# settings are wrong.
_FATAL_STATUSES = (301, 302, 307, 308, 400, 401, 403, 404, 405)


def official_model_server() -> str | None:
    """Return the path of TensorFlow Serving's binary if it is on PATH.

    It listens on all addresses of the machine; no flag restricts that.
    """
    return shutil.which(TENSORFLOW_MODEL_SERVER)


def model_server(
    config_file: Path,
    model_name: str,
    grpc_port: int,
    rest_port: int,
    log: Path | None = None,
    host: str = LOOPBACK,
    embedded: bool = False,
    load_retries: int = 2,
    precision: str = FLOAT32,
) -> Program:
    """Return the model server: TensorFlow Serving if it is on PATH, otherwise the embedded server, with the same flags.

    The program is ready once the version with the label `stable` is available. A file that enables metrics is written
    next to `config_file`.

    Args:
        config_file: Model configuration. The server reads it once; rollout sends it later changes.
        model_name: Name of the model.
        grpc_port: Port of the gRPC API.
        rest_port: Port of the REST API.
        log: Log file; see Program.
        host: IP address to listen on; TensorFlow Serving listens on all.
        embedded: Whether to use the embedded server even if TensorFlow Serving is on PATH.
        load_retries: Maximum number of retries of a failed load.
        precision: Precision in which the server computes all versions.
    """
    monitoring = config_file.with_name("monitoring.config")
    monitoring.write_text("prometheus_config { enable: true }\n", encoding="utf-8")
    binary = None if embedded else official_model_server()
    flags = {
        "port": grpc_port,
        "rest_api_port": rest_port,
        "model_config_file": config_file,
        "model_config_file_poll_wait_seconds": 0,
        # Required for the labels of the initial configuration: no version is loaded yet.
        "allow_version_labels_for_unavailable_models": "true",
        # The defaults, five retries one minute apart, delay the report of a permanent failure.
        "max_num_load_retries": load_retries,
        "load_retry_interval_micros": 5_000_000,
        "monitoring_config_file": monitoring,
        "enable_grpc_healthcheck_service": "true",
    }
    if not binary and host != LOOPBACK:
        flags["host"] = host
    # The URL of the model itself would return 200 while the model is still loading.
    ready_url = f"{local_url(host, rest_port)}/v1/models/{model_name}/labels/{STABLE}/metadata"
    return Program("model server", model_server_command(binary, flags), ready_url, environment(precision), log)


def model_server_command(binary: str | None, flags: Mapping[str, object]) -> list[str]:
    """Return the command line of a model server.

    Args:
        binary: Path of TensorFlow Serving's binary; None for the embedded server.
        flags: Values by flag name.
    """
    program = [binary] if binary else [sys.executable, "-m", "serving.model_server"]
    return [*program, *(f"--{name}={value}" for name, value in flags.items())]


def gateway(host: str, port: int, grpc_port: int, model_name: str, traffic_file: Path, log: Path) -> Program:
    """Return the gateway, which queries the stable version; other settings come from this process's environment.

    Args:
        host: IP address to listen on.
        port: Port to listen on.
        grpc_port: gRPC port of the model server.
        model_name: Name of the model.
        traffic_file: File with the canary's share of the requests.
        log: Log file; see Program.
    """
    settings = {
        "CATBREEDS_GATEWAY_TRAFFIC_FILE": str(traffic_file),
        "CATBREEDS_GATEWAY_HOST": host,
        "CATBREEDS_GATEWAY_PORT": str(port),
        "CATBREEDS_GATEWAY_MODEL_SERVER": address(LOOPBACK, grpc_port),
        "CATBREEDS_GATEWAY_MODEL_NAME": model_name,
        "CATBREEDS_GATEWAY_MODEL_LABEL": STABLE,
    }
    command = [sys.executable, "-m", "serving.gateway"]
    return Program("gateway", command, f"{local_url(host, port)}/readyz", settings, log, _FATAL_STATUSES)


def page(host: str, port: int, gateway_url: str, samples: Path | None, log: Path) -> Program:
    """Return the web page.

    Args:
        host: IP address to listen on.
        port: Port to listen on.
        gateway_url: URL of the gateway.
        samples: Folder of sample photos; None for no samples.
        log: Log file; see Program.
    """
    settings = {
        "CATBREEDS_PAGE_HOST": host,
        "CATBREEDS_PAGE_PORT": str(port),
        "CATBREEDS_PAGE_GATEWAY": gateway_url,
        "CATBREEDS_PAGE_SAMPLES": str(samples or ""),
    }
    command = [sys.executable, "-m", "serving.page"]
    return Program("page", command, f"{local_url(host, port)}/_stcore/health", settings, log, _FATAL_STATUSES)


def local_url(host: str, port: int) -> str:
    """Return the URL by which this machine reaches a server that listens on `host`."""
    return f"http://{local_address(host, port)}"
