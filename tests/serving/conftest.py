"""A model server with two versions of a small classifier, for tests of its clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.classifier import Classifier
from tests.serving.model_server.servers import ModelServer, eventually


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    """Base path with versions 1, without the signature `explain`, and 2."""
    base = tmp_path_factory.mktemp("catbreeds")
    Classifier().save(base / "1", explain=False)
    Classifier().save(base / "2")
    return base


@pytest.fixture(scope="session")
def model_server(classifier, tmp_path_factory) -> Iterator[ModelServer]:
    """A model server with both versions of `catbreeds`; version 1 is `stable`."""
    folder = tmp_path_factory.mktemp("model server")
    config = folder / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "catbreeds" base_path: "{classifier}" model_platform: "tensorflow"'
        ' model_version_policy { all {} } version_labels { key: "stable" value: 1 } } }'
    )
    server = ModelServer(
        folder, f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models", "--enable_batching"
    )
    eventually(lambda: server.available("catbreeds") == {1, 2})
    yield server
    server.stop()
