"""A registry of toy models that tell their version, and model servers that serve it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.registry import Registry
from serving.rollout.laptop import MODEL_SERVER, Laptop
from tests.serving.model_server.servers import ModelServer
from tests.serving.model_server.toys import Adder

NAME = "catbreeds"
FLAGS = ("--max_num_load_retries=0", "--allow_version_labels_for_unavailable_models=true")


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Adders that the registry takes: 1 to 4, of which 4 cannot be loaded."""
    folder = tmp_path_factory.mktemp("models")
    for version in range(1, 5):
        model = folder / str(version)
        Adder(version).save(model)
        (model / "assets.extra").mkdir()
        (model / "assets.extra" / "catbreeds.json").write_text(json.dumps({"recipe_digest": f"recipe-{version}"}))
    (folder / "4" / "saved_model.pb").write_bytes(b"no graph")
    return folder


@pytest.fixture
def registry(tmp_path, models) -> Registry:
    """Versions 1, 2, 3, of which 1 is stable, and 4, which is broken."""
    registry = Registry(tmp_path / "work" / "serving" / NAME)
    for version in range(1, 5):
        assert registry.push(models / str(version), {}) == version
    return registry


@pytest.fixture
def laptop(tmp_path, registry) -> Laptop:
    return Laptop(tmp_path / "work", registry.base)


@pytest.fixture
def start(tmp_path, laptop) -> Iterator[Callable[[], ModelServer]]:
    """Starts a server on the live configuration and writes down where it listens."""
    running = []

    def start() -> ModelServer:
        server = ModelServer(tmp_path, f"--model_config_file={laptop.config_file}", *FLAGS)
        announced = laptop.announced(MODEL_SERVER, f"127.0.0.1:{server.port}")
        announced.__enter__()
        running.append((server, announced))
        return server

    yield start
    for server, announced in running:
        announced.__exit__(None, None, None)
        server.stop()
