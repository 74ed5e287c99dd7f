"""Images that buildah builds from the Dockerfiles, without a Docker engine.

Each container runs as the user of its image with a read-only root. The images differ from production in two parts: the
base image is Debian with its Python instead of the Python image, and the embedded model server replaces TensorFlow
Serving.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.settings import ROOT
from tests import debian as debian_12
from tests.running import SMALL
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

pytestmark = pytest.mark.slow

DOCKERFILES = {"pipeline": "Dockerfile", "gateway": "serving/gateway/Dockerfile", "page": "serving/page/Dockerfile"}
# PATH of the Python image that the base image replaces.
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UV_CACHE = "/uv-cache"
MODEL_SERVER = """#!/bin/sh
[ "$1" != --version ] || exec echo "replaces TensorFlow Serving"
exec /venv/bin/python -m serving.model_server "$@"
"""


class Store:
    """Images and containers in a folder; a call runs a command of buildah and returns its output."""

    def __init__(self, folder: Path):
        self.command = ["buildah", "--root", str(folder / "images"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: object) -> str:
        # Mounts end with the command, which has its own mount namespace.
        command = ["unshare", "--mount", *self.command, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def container(self, image: str) -> str:
        return self("from", "--pull-never", image)


class Container:
    """A process in a container, started as Kubernetes does: with the image's user, entry point and a read-only root.

    Args:
        store: Store with the image.
        image: Name of the image.
        log: File for the output.
        arguments: Arguments of the entry point.
        command: Command that replaces the entry point.
        variables: Environment variables in addition to those of the image.
        shared: Writable folders of this machine, each with its path in the container.
    """

    def __init__(
        self,
        store: Store,
        image: str,
        log: Path,
        *arguments: object,
        command: tuple[str, ...] = (),
        variables: dict[str, object] | None = None,
        shared: tuple[tuple[Path, str], ...] = (),
    ):
        config = json.loads(store("inspect", "--type", "image", image))["OCIv1"]["config"]
        environment = dict(variable.split("=", 1) for variable in config["Env"]) | (variables or {})
        mount = shlex.join([*store.command, "mount", store.container(image)])
        process = (*(command or config["Entrypoint"]), *map(str, arguments))
        in_container = (
            *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
            *("sh", "-c", 'cd "$0" && exec "$@"', config["WorkingDir"], *process),
        )
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                debian_12.enter(mount, config["User"], in_container, [(Path("/dev"), "/dev"), *shared], read_only=True),
                stdout=output,
                stderr=output,
            )

    def wait(self) -> int:
        return self.process.wait(5 * DEADLINE)

    def terminate(self) -> int:
        """Send SIGTERM to process 1, which has no default signal actions, and return its exit code."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        return self.wait()

    def get(self, url: str) -> httpx.Response:
        """Send a request to a server that may still be starting."""

        def response() -> httpx.Response | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return httpx.get(url, trust_env=False)
            except httpx.TransportError:
                return None

        return eventually(response)


@pytest.fixture(scope="module")
def store(debian, tmp_path_factory) -> Iterator[Store]:
    """Store with all images."""
    if not shutil.which("buildah"):
        pytest.skip("buildah not found; install it with `make buildah`")
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder)
    try:
        make_bases(store, debian, folder)
        cache = subprocess.check_output([Path(sys.executable).with_name("uv"), "cache", "dir"], text=True).strip()
        Path(cache).mkdir(parents=True, exist_ok=True)
        volumes = [f"{path}:{path}:ro" for path in debian_12.registry_files()] + [f"{cache}:{UV_CACHE}"]
        for image, path in DOCKERFILES.items():
            store(
                *("build", "--isolation", "chroot", "--pull-never", "--file", path, "--tag", f"localhost/{image}"),
                *("--build-arg", "PYTHON=localhost/python"),
                *("--build-arg", "TENSORFLOW_SERVING=localhost/model-server", "--build-arg", "SOURCE_COMMIT=abc"),
                *(f"--volume={volume}" for volume in volumes),
                ROOT,
            )
        print(store("images"))
        yield store
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def make_bases(store: Store, debian: Path, folder: Path) -> None:
    """Create the base images of the Dockerfiles, with the package index variables of pip and uv."""
    python = store("from", "scratch")
    store("copy", "--quiet", python, debian, "/")
    store("run", "--isolation", "chroot", python, "python3", "-m", "venv", "/usr/local")
    for name, value in {"PATH": BASE_PATH, "UV_CACHE_DIR": UV_CACHE, **debian_12.registries()}.items():
        store("config", "--env", f"{name}={value}", python)
    store("commit", "--quiet", "--rm", python, "localhost/python")

    program = folder / "tensorflow_model_server"
    program.write_text(MODEL_SERVER)
    program.chmod(0o755)
    server = store("from", "scratch")
    store("copy", "--quiet", server, program, "/usr/bin/")
    store("commit", "--quiet", "--rm", server, "localhost/model-server")


@pytest.fixture
def start(store, tmp_path) -> Iterator:
    """Function that starts containers; they end with the test."""
    started: list[Container] = []

    def start(image: str, *arguments: object, **options) -> Container:
        log = tmp_path / f"{image}-{len(started)}.log"
        started.append(Container(store, f"localhost/{image}", log, *arguments, **options))
        return started[-1]

    yield start
    for container in started:
        container.process.kill()
        container.process.wait()


@pytest.mark.parametrize("image", DOCKERFILES)
def test_image_runs_as_non_root_with_a_read_only_root(start, image):
    container = start(image, command=("sh", "-c", "id -u; touch /app/file"))
    assert container.wait() == 1
    assert container.log.read_text() == "10001\ntouch: cannot touch '/app/file': Read-only file system\n"


def test_gateway_image_is_alive_and_reports_why_it_is_not_ready(start):
    port, unused_port = free_port(), free_port()
    variables = {"CATBREEDS_GATEWAY_PORT": port, "CATBREEDS_GATEWAY_MODEL_SERVER": f"localhost:{unused_port}"}
    gateway = start("gateway", variables=variables)
    assert gateway.get(f"http://localhost:{port}/healthz").status_code == 200
    ready = gateway.get(f"http://localhost:{port}/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "model_server_unavailable")
    assert gateway.terminate() == 0


def test_page_image_passes_the_probes_of_kubernetes(start):
    port = free_port()
    page = start("page", variables={"CATBREEDS_PAGE_PORT": port})
    assert page.get(f"http://localhost:{port}/_stcore/health").status_code == 200
    assert "<title>" in page.get(f"http://localhost:{port}/").text
    assert page.terminate() == 0


def test_gateway_image_serves_a_model_trained_in_the_pipeline_image(start, generate_photos, tmp_path):
    volume = tmp_path / "volume"
    shutil.copytree(generate_photos(breeds=3, photos=25), volume / "photos")
    subprocess.run(["chmod", "-R", "a+rwX", volume], check=True)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    workdir = ("--workdir", "/catbreeds/runs")
    shared = ((volume, "/catbreeds"),)
    arguments = ("--profile", "demo", "--data", "/catbreeds/photos", *workdir, *settings)
    run = start("pipeline", "run", *arguments, shared=shared)
    assert run.wait() == 0, run.log.read_text()
    assert "Stable version: 1." in run.log.read_text()

    grpc, rest, port = free_port(), free_port(), free_port()
    model_server = start("pipeline", "serve", *workdir, "--grpc-port", grpc, "--rest-port", rest, shared=shared)
    assert model_server.get(f"http://127.0.0.1:{rest}/v1/models/catbreeds").status_code == 200
    variables = {"CATBREEDS_GATEWAY_PORT": port, "CATBREEDS_GATEWAY_MODEL_SERVER": f"127.0.0.1:{grpc}"}
    gateway = start("gateway", variables=variables)
    eventually(lambda: gateway.get(f"http://localhost:{port}/readyz").status_code == 200)
    photo = next((volume / "photos").glob("*/*.jpg"))
    form = {"file": photo.read_bytes()}
    response = httpx.post(f"http://localhost:{port}/v1/breeds:predict", files=form, trust_env=False)
    assert response.status_code == 200, response.text
    assert [container.terminate() for container in (gateway, model_server)] == [0, 0]


def test_pipeline_image_compiles_pipelines_and_has_the_command_of_their_tasks(start):
    compiled = start("pipeline", "compile", "--output", "/tmp/specs")
    task = start("pipeline", "--help", command=("python", "-m", "pipeline.runners.kubeflow.entrypoint"))
    for container in (compiled, task):
        assert container.wait() == 0, container.log.read_text()
