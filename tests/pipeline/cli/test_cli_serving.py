"""`catbreeds serve` with a fake TensorFlow Serving, and the addresses that `serve` and `up` listen on."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.registry import Registry
from tests import fork_server
from tests.amx import needs_amx
from tests.running import CATBREEDS, catbreeds
from tests.serving.classifier import BREEDS, Classifier
from tests.serving.model_server.servers import DEADLINE, eventually, free_port, listening

# Records its flags, and responds to every request with the content of the file `response`.
FAKE_TENSORFLOW_SERVING = """#!{python} -SE
import http.server, json, os, pathlib, sys
here = pathlib.Path(__file__).parent
(here / "math_mode").write_text(os.environ.get("TF_SET_ONEDNN_FPMATH_MODE", ""))
(here / "flags").write_text(json.dumps(dict(argument[2:].split("=", 1) for argument in sys.argv[1:])))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((here / "response").read_bytes())

port = json.loads((here / "flags").read_text())["rest_api_port"]
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class Serve:
    """A running `catbreeds serve` for a registry with versions 1 and 2, with TensorFlow Serving on PATH."""

    def __init__(self, folder: Path, precision: str = "float32"):
        self.workdir, self.bin, self.log = folder / "work", folder / "bin", folder / "log"
        self.registry = Registry(self.workdir / "serving" / "catbreeds")
        model = folder / "model"
        (model / "assets.extra").mkdir(parents=True)
        (model / "saved_model.pb").touch()
        record = {"model_digest": "recipe", "backbone": {"precision": precision}}
        (model / "assets.extra" / "catbreeds.json").write_text(json.dumps(record))
        for _ in range(2):
            self.registry.push(model, {})
        self.bin.mkdir()
        server = self.bin / "tensorflow_model_server"
        server.write_text(FAKE_TENSORFLOW_SERVING.format(python=sys.executable))
        server.chmod(0o755)
        (self.bin / "response").write_text("{}")
        self.ports = {"--grpc-port": free_port(), "--rest-port": free_port()}
        command = [CATBREEDS, "serve", "--workdir", self.workdir, *(p for pair in self.ports.items() for p in pair)]
        environment = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        with self.log.open("wb") as log:
            self.process = fork_server.Popen(command, env=environment, stdout=log, stderr=log)
        eventually(lambda: self.has_printed("gRPC"))

    def has_printed(self, text: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return text in self.log.read_text()

    def flags(self) -> dict[str, str]:
        return json.loads((self.bin / "flags").read_text())

    def config(self) -> tuple[list[int], dict[str, int]]:
        """Read the versions to load and the labels from the configuration of the server."""
        text = Path(self.flags()["model_config_file"]).read_text()
        (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        assert (model.name, model.base_path, model.model_platform) == (
            "catbreeds",
            str(self.registry.base),
            "tensorflow",
        )
        return list(model.model_version_policy.specific.versions), dict(model.version_labels)


@pytest.fixture
def serve(tmp_path, request) -> Iterator[Serve]:
    serve = Serve(tmp_path, getattr(request, "param", "float32"))
    yield serve
    serve.process.kill()
    serve.process.wait()


def test_serve_prefers_tensorflow_serving_and_configures_the_stable_version(serve):
    flags = serve.flags()
    assert (int(flags["port"]), int(flags["rest_api_port"])) == tuple(serve.ports.values())
    assert int(flags["model_config_file_poll_wait_seconds"]) == 0  # rollouts send a reload request instead
    assert serve.config() == ([1], {"stable": 1})
    assert f"catbreeds version 1 is stable: gRPC 127.0.0.1:{flags['port']}" in serve.log.read_text()


@needs_amx
@pytest.mark.parametrize(
    ("serve", "mode"), [("float32", ""), ("bfloat16", "BF16")], indirect=["serve"], ids=["float32", "bfloat16"]
)
def test_serve_starts_tensorflow_serving_in_the_precision_of_the_stable_version(serve, mode):
    assert (serve.bin / "math_mode").read_text() == mode


def test_a_signal_stops_the_server(serve):
    assert httpx.get(f"http://127.0.0.1:{serve.ports['--rest-port']}").is_success
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(DEADLINE) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{serve.ports['--rest-port']}")


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_registry_without_a_model_is_rejected(command, tmp_path):
    ports = {"--grpc-port": free_port(), "--rest-port": free_port()}
    if command == "up":
        ports |= {"--gateway-port": free_port(), "--page-port": free_port()}
    done = catbreeds(command, "--workdir", tmp_path, *(part for pair in ports.items() for part in pair))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no version is stable; `catbreeds run` trains and pushes one" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_warns_that_tensorflow_serving_listens_on_all_addresses(serve):
    assert "tensorflow_model_server listens on all addresses of this machine" in serve.log.read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """Workdir with a stable version."""
    folder = tmp_path_factory.mktemp("served")
    Classifier().save(folder / "model")
    (folder / "model" / "assets.extra").mkdir()
    record = {"model_digest": "recipe", "breeds": BREEDS}
    (folder / "model" / "assets.extra" / "catbreeds.json").write_text(json.dumps(record))
    Registry(folder / "serving" / "catbreeds").push(folder / "model", {})
    return folder


@pytest.mark.parametrize(("command", "host"), [("serve", None), ("up", "::1")])
def test_servers_listen_on_the_printed_addresses(served, command, host, tmp_path):
    flags = ["--grpc-port", "--rest-port", *(["--gateway-port", "--page-port"] if command == "up" else [])]
    ports = {flag: free_port() for flag in flags}
    arguments = [command, "--workdir", served, *(part for pair in ports.items() for part in pair)]
    log = tmp_path / "log"
    with log.open("wb") as file:
        arguments += ["--host", host] if host else []
        process = fork_server.Popen([CATBREEDS, *arguments], stdout=file, stderr=file)
    try:
        eventually(
            lambda: process.poll() is not None or ("Open http" if command == "up" else "gRPC") in log.read_text()
        )
        printed = log.read_text()
        assert process.poll() is None, printed
        found = {}
        for child in psutil.Process(process.pid).children(recursive=True):
            found |= listening(child.pid)
        expected = dict.fromkeys(flags, host or "127.0.0.1")
        if command == "up":  # only the gateway uses the model server
            expected |= {"--grpc-port": "127.0.0.1", "--rest-port": "127.0.0.1"}
        assert {flag: found[port] for flag, port in ports.items()} == expected
        for flag, port in ports.items():
            address = f"[{expected[flag]}]:{port}" if ":" in expected[flag] else f"{expected[flag]}:{port}"
            assert address in printed
            if flag != "--grpc-port":
                assert httpx.get(f"http://{address}", timeout=DEADLINE).status_code < 500
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("nobody.invalid", "'nobody.invalid': "),
        ("http://localhost", "'http://localhost': "),
        ("", "'': not an IP address"),
        ("224.0.0.1", "'224.0.0.1': a multicast address"),
        ("ff02::1", "'ff02::1': a multicast address"),
        ("fe80::1%lo", "'fe80::1%lo': not an IP address"),
        ("192.0.2.1", "--host 192.0.2.1: Cannot assign requested address"),
        ("2001:db8::1", "--host 2001:db8::1: Cannot assign requested address"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "up"])
def test_an_address_of_another_machine_is_rejected_before_any_server_starts(command, host, message, tmp_path):
    done = catbreeds(command, "--workdir", tmp_path, "--host", host, "--grpc-port", free_port())
    text = " ".join(done.stderr.replace("│", " ").split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in text
    assert "address of this machine, or 0.0.0.0 for all" in text
    assert "Traceback" not in text


def test_the_same_port_for_two_servers_is_rejected(tmp_path):
    port = free_port()
    done = catbreeds("serve", "--workdir", tmp_path, "--grpc-port", port, "--rest-port", port)
    assert done.returncode == 2
    assert f"--grpc-port and --rest-port are both {port}" in done.stderr
