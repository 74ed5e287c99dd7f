"""Model server, gateway and page run with the flags, files and variables of their manifests."""

import contextlib
import os
import subprocess
import sys

import grpc
import httpx
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from pipeline.settings import RolloutSettings
from serving.rollout.kubernetes_fleet import CONFIG_MAP
from serving.rollout.serving_config import CONFIG_FILE, ServingConfig
from tests.serving.gateway.gateways import PHOTOS
from tests.serving.k8s.manifest_rules import LIVE_CONFIG
from tests.serving.k8s.variants import Variant
from tests.serving.model_server.servers import DEADLINE, eventually, free_port


def probe(variant: Variant, name: str, kind: str) -> str:
    """Return the path of an HTTP probe."""
    container = next(container for deployment, _, container in variant.containers() if deployment == name)
    return container[kind]["httpGet"]["path"]


def test_pods_are_alive_while_models_load_and_ready_once_stable_is_available(variant, container, server, gateway):
    def ready() -> tuple[int, int]:
        path = probe(variant, "model-server", "readinessProbe")
        return server.rest("GET", path)[0], gateway.http.get(probe(variant, "gateway", "readinessProbe")).status_code

    assert container["livenessProbe"]["grpc"] == container["startupProbe"]["grpc"] == {"port": 8500}
    healthy = server.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert healthy(b"", timeout=DEADLINE) == b"\x08\x01"  # SERVING
    for kind in ("startupProbe", "livenessProbe"):
        assert gateway.http.get(probe(variant, "gateway", kind)).status_code == 200
    assert server.states("catbreeds")[1] == "AVAILABLE"
    assert ready() == (404, 503)
    (server.models_folder / "2.staged").rename(server.models_folder / "catbreeds" / "2")
    eventually(lambda: ready() == (200, 200))
    assert gateway.predict(PHOTOS[0]).json()["model"]["version"] == 2


@pytest.mark.parametrize("pod", ["page", "review"])
def test_the_page_starts_with_its_variables_and_passes_its_probes(rendered, pod, tmp_path):
    variant = next(one for one in rendered["local"] if one.name == "local+capture+review")
    container = next(container for name, _, container in variant.containers() if name == pod)
    port = free_port()
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["HOME"] == "/tmp"
    for mount in container["volumeMounts"]:
        folder = tmp_path / mount["name"]
        folder.mkdir()
        assert mount["mountPath"] in variables.values()
        variables = {name: str(folder) if text == mount["mountPath"] else text for name, text in variables.items()}
    variables["CATBREEDS_PAGE_PORT"] = str(port)
    process = subprocess.Popen([sys.executable, "-m", "serving.page"], env=os.environ | variables)
    try:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):

            def responds(path: str = probe(variant, pod, kind)) -> bool:
                assert process.poll() is None
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"http://localhost:{port}{path}", timeout=DEADLINE).text == "ok"
                return False

            eventually(responds)
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0


def test_the_model_server_closes_old_connections(server):
    assert server.states("catbreeds")
    states = []
    server.channel.subscribe(states.append)
    eventually(lambda: grpc.ChannelConnectivity.IDLE in states)


def test_pods_read_the_files_that_the_rollout_writes(container):
    files = ServingConfig((1,), {"stable": 1}).files("catbreeds", f"{RolloutSettings().models_dir}/catbreeds")
    assert (CONFIG_MAP, files.keys()) == LIVE_CONFIG
    config = text_format.Parse(files[CONFIG_FILE], model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert f"/v1/models/{model.name}/labels/stable/" in container["readinessProbe"]["httpGet"]["path"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(model.base_path.startswith(f"{mount}/") for mount in mounts)
