"""The model server that is deployed, started here with the flags and files of its manifests."""

import re

import grpc
import pytest

from tests.serving.k8s.variants import Object, Variant
from tests.serving.model_server.servers import DEADLINE, ModelServer, eventually
from tests.serving.model_server.toys import Adder

_CONFIG = """
model_config_list {
  config {
    name: "catbreeds"
    base_path: "/models/catbreeds"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 2 }
  }
}
"""


@pytest.fixture(scope="module")
def variant(rendered) -> Variant:
    """With batching and without a GPU."""
    return next(variant for variant in rendered["local"] if variant.name == "local+monitoring+batching")


@pytest.fixture(scope="module")
def container(variant) -> Object:
    return next(container for name, _, container in variant.containers() if name == "model-server")


@pytest.fixture(scope="module")
def server(variant, container, tmp_path_factory):
    """Its pod, with the folders of its volumes elsewhere. Version 2, which shall be stable, is not there yet."""
    folder = tmp_path_factory.mktemp("pod")
    paths = {mount["mountPath"]: folder / mount["name"] for mount in container["volumeMounts"]}
    for path in paths.values():
        path.mkdir()

    def moved(text: str) -> str:
        return re.sub(r'(?<=[="])(/models|/etc/[a-z-]+)/', lambda found: f"{paths[found[1]]}/", text)

    files = next(config for config in variant.of("ConfigMap") if "monitoring.config" in config["data"])
    for name, text in files["data"].items():
        (paths["/etc/model-server"] / name).write_text(text)
    (paths["/etc/model-config"] / "models.config").write_text(moved(_CONFIG))
    Adder(1).save(paths["/models"] / "catbreeds" / "1")
    ports = ("--port=", "--rest_api_port=")
    server = ModelServer(folder, *(moved(flag) for flag in container["args"] if not flag.startswith(ports)))
    server.models_folder = paths["/models"]
    yield server
    server.stop()


def status(server: ModelServer, path: str) -> int:
    with server.connection() as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_a_pod_is_alive_while_it_loads_and_ready_when_the_stable_version_serves(container, server):
    assert container["livenessProbe"]["grpc"] == container["startupProbe"]["grpc"] == {"port": 8500}
    healthy = server.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert healthy(b"", timeout=DEADLINE) == b"\x08\x01"  # SERVING
    assert server.added("catbreeds") == 1.0
    readiness = container["readinessProbe"]["httpGet"]["path"]
    assert status(server, readiness) == 404
    Adder(2).save(server.models_folder / "staged")
    (server.models_folder / "staged").rename(server.models_folder / "catbreeds" / "2")
    eventually(lambda: status(server, readiness) == 200)
    assert server.added("catbreeds", "stable") == 2.0


def test_connections_end_so_that_gateways_look_for_pods_again(server):
    assert server.added("catbreeds", 1) == 1.0
    states = []
    server.channel.subscribe(states.append)
    eventually(lambda: grpc.ChannelConnectivity.IDLE in states)


def scraped(server: ModelServer, variant: Variant) -> str:
    """What Prometheus reads from a pod of the model server."""
    (endpoint,) = variant.find("PodMonitor", "model-server")["spec"]["podMetricsEndpoints"]
    with server.connection() as connection:
        connection.request("GET", endpoint["path"])
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()


def test_prometheus_finds_the_metrics_of_the_model_server(server, variant):
    server.added("catbreeds")
    assert ":tensorflow:serving:request_count{" in scraped(server, variant)
