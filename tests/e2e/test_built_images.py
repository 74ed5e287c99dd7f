"""The images as buildah builds them from the Dockerfiles, without a Docker engine.

Each starts as its own user, on a root that cannot be written to. Two parts are not those of production: the base is a
Debian with its Python in place of Python's image, and in place of TensorFlow Serving the model server is ours.
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
# Of the image of Python that it stands for.
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UV_CACHE = "/uv-cache"
MODEL_SERVER = """#!/bin/sh
[ "$1" != --version ] || exec echo "in place of TensorFlow Serving"
exec /venv/bin/python -m serving.model_server "$@"
"""


class Store:
    """Images and containers of a test, below a folder."""

    def __init__(self, folder: Path):
        self.command = ["buildah", "--root", str(folder / "images"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: object) -> str:
        # Mounts end with the command.
        command = ["unshare", "--mount", *self.command, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def container(self, image: str) -> str:
        return self("from", "--pull-never", image)


class Container:
    """A process of an image, started as Kubernetes would: its user, entry point and variables, and a read-only root.

    Args:
        store: has the image.
        image: its name.
        log: where its output goes.
        arguments: behind the entry point.
        command: in place of the entry point.
        variables: added to those of the image.
        shared: folders of this machine that it can write to, each with its place in the container.
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
        """Sends SIGTERM to process 1, which no default action would end; its exit code."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        return self.wait()

    def get(self, url: str) -> httpx.Response:
        """The answer of a server that may still be starting."""

        def answer() -> httpx.Response | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return httpx.get(url, trust_env=False)
            except httpx.TransportError:
                return None

        return eventually(answer)


@pytest.fixture(scope="module")
def store(debian, tmp_path_factory) -> Iterator[Store]:
    """Has all images."""
    if not shutil.which("buildah"):
        pytest.skip("no buildah; make buildah installs it")
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
    """The images that the Dockerfiles begin with; variables tell pip and uv where packages come from."""
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
    """Starts containers, which end with the test."""
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
def test_the_image_s_user_is_not_root_and_finds_a_root_that_cannot_be_written_to(start, image):
    container = start(image, command=("sh", "-c", "id -u; touch /app/file"))
    assert container.wait() == 1
    assert container.log.read_text() == "10001\ntouch: cannot touch '/app/file': Read-only file system\n"


def test_the_gateway_s_image_says_that_it_lives_and_why_it_is_not_ready(start):
    port, nowhere = free_port(), free_port()
    variables = {"CATBREEDS_GATEWAY_PORT": port, "CATBREEDS_GATEWAY_MODEL_SERVER": f"localhost:{nowhere}"}
    gateway = start("gateway", variables=variables)
    assert gateway.get(f"http://localhost:{port}/healthz").status_code == 200
    ready = gateway.get(f"http://localhost:{port}/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "model_server_unavailable")
    assert gateway.terminate() == 0


def test_the_page_s_image_answers_as_kubernetes_asks(start):
    port = free_port()
    page = start("page", variables={"CATBREEDS_PAGE_PORT": port})
    assert page.get(f"http://localhost:{port}/_stcore/health").status_code == 200
    assert "<title>" in page.get(f"http://localhost:{port}/").text
    assert page.terminate() == 0


def test_the_pipeline_s_image_trains_a_model_that_a_gateway_s_image_answers_from(start, generate_photos, tmp_path):
    volume = tmp_path / "volume"
    shutil.copytree(generate_photos(breeds=3, photos=25), volume / "photos")
    subprocess.run(["chmod", "-R", "a+rwX", volume], check=True)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    place = ("--workdir", "/catbreeds/runs")
    shared = ((volume, "/catbreeds"),)
    run = start("pipeline", "run", "--profile", "demo", "--data", "/catbreeds/photos", *place, *settings, shared=shared)
    assert run.wait() == 0, run.log.read_text()
    assert "In service: version 1." in run.log.read_text()

    grpc, rest, port = free_port(), free_port(), free_port()
    served = start("pipeline", "serve", *place, "--grpc-port", grpc, "--rest-port", rest, shared=shared)
    assert served.get(f"http://127.0.0.1:{rest}/v1/models/catbreeds").status_code == 200
    variables = {"CATBREEDS_GATEWAY_PORT": port, "CATBREEDS_GATEWAY_MODEL_SERVER": f"127.0.0.1:{grpc}"}
    gateway = start("gateway", variables=variables)
    eventually(lambda: gateway.get(f"http://localhost:{port}/readyz").status_code == 200)
    photo = next((volume / "photos").glob("*/*.jpg"))
    form = {"file": photo.read_bytes()}
    answer = httpx.post(f"http://localhost:{port}/v1/breeds:predict", files=form, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert [container.terminate() for container in (gateway, served)] == [0, 0]


def test_the_pipeline_s_image_compiles_pipelines_and_has_the_command_of_their_tasks(start):
    compiled = start("pipeline", "compile", "--output", "/tmp/specs")
    task = start("pipeline", "--help", command=("python", "-m", "pipeline.runners.kubeflow.entrypoint"))
    for container in (compiled, task):
        assert container.wait() == 0, container.log.read_text()
