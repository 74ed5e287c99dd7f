"""Model server, gateway and page as programs of one machine, each told where the one before it listens."""

import shutil
import sys
from pathlib import Path

from serving.addresses import LOOPBACK, address, local_address
from serving.labels import STABLE
from serving.local.processes import Program

MODEL_SERVER = "tensorflow_model_server"
# Gateway and page answer 503 until they are ready: these mean another program, or settings of another one.
_NEVER = (301, 302, 307, 308, 400, 401, 403, 404, 405)


def official_model_server() -> str | None:
    """Path of TensorFlow Serving's binary, if it is on PATH. It listens on all addresses: no flag limits that."""
    return shutil.which(MODEL_SERVER)


def model_server(
    config: Path, ready: str, grpc_port: int, rest_port: int, log: Path | None = None, host: str = LOOPBACK
) -> Program:
    """TensorFlow Serving where it is on PATH, else the embedded server; both take these flags.

    Args:
        config: file of the models, which is read once: rollout tells the server what changes. Beside it the file that
            switches metrics on is written.
        ready: see Program.
        grpc_port: to listen on.
        rest_port: to listen on.
        log: see Program.
        host: IP address to listen on; TensorFlow Serving listens on all.
    """
    monitoring = config.with_name("monitoring.config")
    monitoring.write_text("prometheus_config { enable: true }\n", encoding="utf-8")
    official = official_model_server()
    flags = {
        "port": grpc_port,
        "rest_api_port": rest_port,
        "model_config_file": config,
        "model_config_file_poll_wait_seconds": 0,
        # Of the file that it starts with: nothing is loaded then.
        "allow_version_labels_for_unavailable_models": "true",
        # The defaults, five more tries a minute apart, hold up what is broken for good.
        "max_num_load_retries": 2,
        "load_retry_interval_micros": 5_000_000,
        "monitoring_config_file": monitoring,
        "enable_grpc_healthcheck_service": "true",
    }
    command = [official] if official else [sys.executable, "-m", "serving.model_server"]
    if not official and host != LOOPBACK:
        flags["host"] = host
    return Program("model server", [*command, *(f"--{name}={value}" for name, value in flags.items())], ready, {}, log)


def gateway(host: str, port: int, grpc_port: int, model: str, traffic_file: Path, log: Path) -> Program:
    """The gateway, asking for what is stable; other settings come from this process's environment.

    Args:
        host: address to listen on.
        port: to listen on.
        grpc_port: of the model server.
        model: its name.
        traffic_file: says what share of the requests the canary gets.
        log: see Program.
    """
    settings = {
        "CATBREEDS_GATEWAY_TRAFFIC_FILE": str(traffic_file),
        "CATBREEDS_GATEWAY_HOST": host,
        "CATBREEDS_GATEWAY_PORT": str(port),
        "CATBREEDS_GATEWAY_MODEL_SERVER": address(LOOPBACK, grpc_port),
        "CATBREEDS_GATEWAY_MODEL_NAME": model,
        "CATBREEDS_GATEWAY_MODEL_LABEL": STABLE,
    }
    command = [sys.executable, "-m", "serving.gateway"]
    return Program("gateway", command, f"{local_url(host, port)}/readyz", settings, log, _NEVER)


def page(host: str, port: int, gateway_url: str, samples: Path | None, log: Path) -> Program:
    """The page.

    Args:
        host: address to listen on.
        port: to listen on.
        gateway_url: whom it asks.
        samples: folder of photos to try.
        log: see Program.
    """
    settings = {
        "CATBREEDS_PAGE_HOST": host,
        "CATBREEDS_PAGE_PORT": str(port),
        "CATBREEDS_PAGE_GATEWAY": gateway_url,
        "CATBREEDS_PAGE_SAMPLES": str(samples or ""),
    }
    command = [sys.executable, "-m", "serving.page"]
    return Program("page", command, f"{local_url(host, port)}/_stcore/health", settings, log, _NEVER)


def local_url(host: str, port: int) -> str:
    """Where this machine reaches what listens on `host`."""
    return f"http://{local_address(host, port)}"
