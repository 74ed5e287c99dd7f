"""The local server serves what is stable in a registry, or says why not."""

import shutil

import pytest

from serving.client import ModelChoice, NotServed
from serving.client.grpc import GrpcClient
from serving.local.model_server import LocalServer, ServerError
from serving.registry import Registry, RegistryError
from tests.serving.classifier import Classifier


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "my cats" / "catbreeds")


def test_what_is_stable_is_served_though_a_newer_version_is_there(registry, tmp_path, generate_photos):
    Classifier().save(tmp_path / "model")
    for _ in range(2):
        registry.push(tmp_path / "model", {})
    server = LocalServer(registry, "catbreeds")
    photo = next(generate_photos(breeds=2, photos=1).glob("*/*"))
    with GrpcClient(server.grpc, ModelChoice(label="stable")) as client:
        assert client.predict(photo).model.version == 1
    with GrpcClient(server.grpc, ModelChoice(version=2)) as client, pytest.raises(NotServed):
        client.predict(photo)
    server.stop()
    server.stop()  # as a cell that is run twice


def test_without_a_model_it_says_what_makes_one(registry):
    with pytest.raises(RegistryError, match="no model is in service there; `catbreeds run` trains and pushes one"):
        LocalServer(registry, "catbreeds")


def test_a_model_that_cannot_be_loaded_is_told_with_the_servers_own_words(registry, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"no model")
    registry.push(tmp_path / "model", {})
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ServerError, match="saved_model"):
        LocalServer(registry, "catbreeds")
