"""The rendered variants, and a model server and a gateway started with the settings of the manifests."""

import re
import shutil
from collections.abc import Iterator

import httpx
import pytest

from serving.drift_result import DriftResult, write_drift_result
from tests.serving.gateway.gateways import PHOTOS, Gateway
from tests.serving.k8s.variants import OVERLAYS, Object, Variant, variants
from tests.serving.model_server.servers import DEADLINE, ModelServer, eventually

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


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> dict[str, list[Variant]]:
    """Variants by overlay; the last one has all components enabled."""
    return {overlay: variants(overlay, tmp_path_factory.mktemp(overlay)) for overlay in OVERLAYS}


@pytest.fixture(scope="session")
def variant(rendered) -> Variant:
    """A variant with batching and without a GPU."""
    return next(variant for variant in rendered["local"] if variant.name == "local+monitoring+batching")


@pytest.fixture(scope="session")
def container(variant) -> Object:
    return next(container for name, _, container in variant.containers() if name == "model-server")


@pytest.fixture(scope="session")
def server(variant, container, classifier, tmp_path_factory) -> Iterator[ModelServer]:
    """A model server with the flags of the pod, and folders as volumes. Version 2, `stable`, is not stored yet."""
    folder = tmp_path_factory.mktemp("pod")
    paths = {mount["mountPath"]: folder / mount["name"] for mount in container["volumeMounts"]}
    for path in paths.values():
        path.mkdir()

    def relocate(text: str) -> str:
        return re.sub(r'(?<=[="])(/models|/etc/[a-z-]+)/', lambda match: f"{paths[match[1]]}/", text)

    files = next(config for config in variant.of_kind("ConfigMap") if "monitoring.config" in config["data"])
    for name, text in files["data"].items():
        (paths["/etc/model-server"] / name).write_text(text)
    (paths["/etc/model-config"] / "models.config").write_text(relocate(_CONFIG))
    shutil.copytree(classifier / "1", paths["/models"] / "catbreeds" / "1")
    shutil.copytree(classifier / "2", paths["/models"] / "2.staged")
    ports = ("--port=", "--rest_api_port=")
    server = ModelServer(folder, *(relocate(flag) for flag in container["args"] if not flag.startswith(ports)))
    server.models_folder = paths["/models"]
    yield server
    server.stop()


@pytest.fixture(scope="session")
def gateway(variant, server, tmp_path_factory) -> Iterator[Gateway]:
    """A gateway with the settings of the pod, connected to that model server."""
    container = next(container for name, _, container in variant.containers() if name == "gateway")
    prefix = "CATBREEDS_GATEWAY_"
    settings = {entry["name"].removeprefix(prefix).lower(): entry["value"] for entry in container["env"]}
    target = settings.pop("model_server").replace("model-server:8500", f"localhost:{server.port}")
    assert target == f"dns:///localhost:{server.port}"
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), server.port, **settings)
    yield gateway
    gateway.stop()


@pytest.fixture(scope="session")
def scraped(variant, server, gateway, tmp_path_factory) -> dict[str, str]:
    """Metrics that Prometheus scrapes from the pods after some requests, by Prometheus job."""
    assert gateway.http.get("/readyz").status_code in (200, 503)
    assert server.predict("catbreeds", 1, image_bytes=[PHOTOS[0]]).result().outputs
    # This gateway queries version 1, which is loaded, and exports a result of `catbreeds drift`.
    folder = tmp_path_factory.mktemp("captures")
    write_drift_result(folder, DriftResult(1, 0, 60, {"width": 0.5}))
    other = Gateway(folder, server.port, capture_folder=folder)
    try:
        assert other.predict(PHOTOS[0]).status_code == 200
        eventually(lambda: other.metric('catbreeds_gateway_drift_ratio{feature="width",version="1"}'))
        predicted = other.http.get("/metrics").text
    finally:
        other.stop()
    texts = {}
    for name, port in {"model-server": server.rest_port, "gateway": gateway.port}.items():
        (endpoint,) = variant.find("PodMonitor", name)["spec"]["podMetricsEndpoints"]
        response = httpx.get(f"http://localhost:{port}{endpoint['path']}", timeout=DEADLINE)
        assert response.status_code == 200
        texts[f"catbreeds/{name}"] = response.text
    return texts | {"catbreeds/gateway": texts["catbreeds/gateway"] + predicted}
