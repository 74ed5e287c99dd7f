"""The variants, rendered once, and a model server as they deploy it."""

import re

import pytest

from tests.serving.k8s.variants import OVERLAYS, Object, Variant, variants
from tests.serving.model_server.servers import ModelServer
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


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> dict[str, list[Variant]]:
    """Variants by overlay; the last one has everything switched on."""
    return {overlay: variants(overlay, tmp_path_factory.mktemp(overlay)) for overlay in OVERLAYS}


@pytest.fixture(scope="session")
def variant(rendered) -> Variant:
    """With batching and without a GPU."""
    return next(variant for variant in rendered["local"] if variant.name == "local+monitoring+batching")


@pytest.fixture(scope="session")
def container(variant) -> Object:
    return next(container for name, _, container in variant.containers() if name == "model-server")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def scraped_model_server(server, variant) -> str:
    """What Prometheus reads from a pod of the model server that has answered a request."""
    server.added("catbreeds")
    (endpoint,) = variant.find("PodMonitor", "model-server")["spec"]["podMetricsEndpoints"]
    with server.connection() as connection:
        connection.request("GET", endpoint["path"])
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
