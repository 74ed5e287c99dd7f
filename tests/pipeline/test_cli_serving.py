"""`catbreeds serve` with a stand-in for TensorFlow Serving: what it is told, and when."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.registry import Registry
from tests import fork_server
from tests.running import CATBREEDS, catbreeds
from tests.serving.model_server.servers import DEADLINE, eventually, free_port

# Writes down its flags, and answers every path with what the file `answer` holds.
OFFICIAL = """#!{python} -SE
import http.server, json, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "flags").write_text(json.dumps(dict(argument[2:].split("=", 1) for argument in sys.argv[1:])))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((here / "answer").read_bytes())

port = json.loads((here / "flags").read_text())["rest_api_port"]
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class Serve:
    """A running `catbreeds serve` of a registry with versions 1 and 2, where TensorFlow Serving is installed."""

    def __init__(self, folder: Path):
        self.workdir, self.bin, self.log = folder / "work", folder / "bin", folder / "log"
        self.registry = Registry(self.workdir / "serving" / "catbreeds")
        model = folder / "model"
        (model / "assets.extra").mkdir(parents=True)
        (model / "saved_model.pb").touch()
        (model / "assets.extra" / "catbreeds.json").write_text(json.dumps({"recipe_digest": "recipe"}))
        for _ in range(2):
            self.registry.push(model, {})
        self.bin.mkdir()
        server = self.bin / "tensorflow_model_server"
        server.write_text(OFFICIAL.format(python=sys.executable))
        server.chmod(0o755)
        self.answer({})
        self.ports = {"--grpc-port": free_port(), "--rest-port": free_port()}
        command = [CATBREEDS, "serve", "--workdir", self.workdir, *(p for pair in self.ports.items() for p in pair)]
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        with self.log.open("wb") as log:
            self.process = fork_server.Popen(command, env=environment, stdout=log, stderr=log)
        eventually(lambda: self.says("gRPC"))

    def answer(self, document: dict) -> None:
        """What the server says from now on."""
        staged = self.bin / "staged"
        staged.write_text(json.dumps(document))
        staged.rename(self.bin / "answer")

    def says(self, text: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return text in self.log.read_text()

    def flags(self) -> dict[str, str]:
        return json.loads((self.bin / "flags").read_text())

    def config(self) -> tuple[list[int], dict[str, int]]:
        """Versions to load, and labels, that the server would read now."""
        text = Path(self.flags()["model_config_file"]).read_text()
        (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        assert (model.name, model.base_path, model.model_platform) == (
            "catbreeds",
            str(self.registry.base),
            "tensorflow",
        )
        return list(model.model_version_policy.specific.versions), dict(model.version_labels)


@pytest.fixture
def serve(tmp_path) -> Iterator[Serve]:
    serve = Serve(tmp_path)
    yield serve
    serve.process.kill()
    serve.process.wait()


def test_tensorflow_serving_is_preferred_and_told_the_registrys_stable(serve):
    flags = serve.flags()
    assert (int(flags["port"]), int(flags["rest_api_port"])) == tuple(serve.ports.values())
    assert int(flags["model_config_file_poll_wait_seconds"]) == 0  # rollout tells it
    assert serve.config() == ([1], {"stable": 1})
    assert f"catbreeds version 1 is stable: gRPC 127.0.0.1:{flags['port']}" in serve.log.read_text()


def test_a_signal_ends_the_server_too(serve):
    assert httpx.get(f"http://127.0.0.1:{serve.ports['--rest-port']}").is_success
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(DEADLINE) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{serve.ports['--rest-port']}")


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_registry_without_a_model_is_told(command, tmp_path):
    ports = {"--grpc-port": free_port(), "--rest-port": free_port()}
    if command == "up":
        ports |= {"--gateway-port": free_port(), "--page-port": free_port()}
    done = catbreeds(command, "--workdir", tmp_path, *(part for pair in ports.items() for part in pair))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no model is in service there; `catbreeds run` trains and pushes one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_for_two_is_refused(tmp_path):
    port = free_port()
    done = catbreeds("serve", "--workdir", tmp_path, "--grpc-port", port, "--rest-port", port)
    assert done.returncode == 2
    assert f"--grpc-port and --rest-port are both {port}" in done.stderr
