"""The model server that is deployed, started here with the flags and files of its manifests."""

import re

import grpc
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.serving.k8s.promises import LIVE_CONFIG
from tests.serving.k8s.variants import ROOT
from tests.serving.model_server.servers import DEADLINE, ModelServer, eventually
from tests.serving.model_server.toys import Adder


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


def test_prometheus_finds_the_metrics_of_the_model_server(scraped_model_server):
    assert ":tensorflow:serving:request_count{" in scraped_model_server


def test_the_documented_configuration_makes_the_first_version_stable(container):
    document = (ROOT / "docs" / "kubernetes.md").read_text()
    name, key, text = re.search(r"create configmap (\S+) --from-literal=(\S+)='(.*?)'", document, re.DOTALL).groups()
    assert (name, key) == LIVE_CONFIG
    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (list(model.model_version_policy.specific.versions), dict(model.version_labels)) == ([1], {"stable": 1})
    assert f"/v1/models/{model.name}/labels/stable/" in container["readinessProbe"]["httpGet"]["path"]
    assert model.base_path.startswith("/models/")
