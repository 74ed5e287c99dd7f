"""A shared model server; tests add models by pushing configurations."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.model_server.servers import ModelServer
from tests.serving.model_server.toys import Adder, Toys, push


@pytest.fixture(scope="session")
def adders(tmp_path_factory) -> Path:
    """Folder of ten versions of Adder, 1 to 10, which no server reads."""
    folder = tmp_path_factory.mktemp("adders")
    for version in range(1, 11):
        Adder(version).save(folder / str(version))
    return folder


@pytest.fixture(scope="session")
def toys(tmp_path_factory) -> Path:
    """Base path of version 7 of Toys."""
    base = tmp_path_factory.mktemp("toys")
    Toys(7).save(base / "7")
    return base


@pytest.fixture(scope="session")
def monitoring(tmp_path_factory) -> str:
    """Flag that enables the metrics."""
    file = tmp_path_factory.mktemp("monitoring") / "monitoring.config"
    file.write_text("prometheus_config { enable: true }")
    return f"--monitoring_config_file={file}"


@pytest.fixture(scope="session")
def server(toys, monitoring, tmp_path_factory) -> Iterator[ModelServer]:
    """A model server that serves `toys`."""
    folder = tmp_path_factory.mktemp("server")
    config = folder / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "toys" base_path: "{toys}" model_platform: "tensorflow" }} }}'
    )
    server = ModelServer(
        folder,
        f"--model_config_file={config}",
        "--max_num_load_retries=0",
        "--enable_grpc_healthcheck_service=true",
        f"--grpc_socket_path={folder / 'socket'}",
        monitoring,
    )
    server.socket = folder / "socket"
    server.configure("toys", toys)
    yield server
    server.stop()


@pytest.fixture
def base(tmp_path, adders) -> Path:
    """Base path for one test, with version 1 of Adder."""
    push(adders / "1", tmp_path / "model", 1)
    return tmp_path / "model"
