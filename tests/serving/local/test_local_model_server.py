"""LocalServer serves the stable version of a registry, or raises an error that explains why it cannot."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from serving.client import ModelChoice, NotServed
from serving.client.grpc import GrpcClient
from serving.local.model_server import LocalServer
from serving.local.processes import ProgramError
from serving.model_files import MODEL_RECORD_FILE
from serving.registry import Registry, RegistryError
from tests.amx import RoundingModel, needs_amx
from tests.serving.classifier import Classifier


def write_record(model: Path, record: dict) -> None:
    (model / "assets.extra").mkdir(parents=True)
    (model / MODEL_RECORD_FILE).write_text(json.dumps(record))


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "my cats" / "catbreeds")


def test_local_server_serves_the_stable_version_although_a_newer_one_exists(registry, tmp_path, generate_photos):
    Classifier().save(tmp_path / "model")
    write_record(tmp_path / "model", {})
    for _ in range(2):
        registry.push(tmp_path / "model", {})
    server = LocalServer(registry, "catbreeds")
    photo = next(generate_photos(breeds=2, photos=1).glob("*/*"))
    with GrpcClient(server.grpc, ModelChoice(label="stable")) as client:
        assert client.predict(photo).model.version == 1
    with GrpcClient(server.grpc, ModelChoice(version=2)) as client, pytest.raises(NotServed):
        client.predict(photo)
    server.stop()
    server.stop()  # a notebook cell may be run twice


@needs_amx
def test_local_server_computes_in_the_precision_of_the_stable_version(registry, tmp_path, generate_photos):
    RoundingModel().save(tmp_path / "model")
    write_record(tmp_path / "model", {"backbone": {"precision": "bfloat16"}})
    registry.push(tmp_path / "model", {})
    server = LocalServer(registry, "catbreeds")
    photo = next(generate_photos(breeds=2, photos=1).glob("*/*"))
    with GrpcClient(server.grpc, ModelChoice(label="stable")) as client:
        assert client.predict(photo).best.breed == "bfloat16"
    server.stop()


def test_local_server_without_a_model_names_the_command_that_pushes_one(registry):
    with pytest.raises(RegistryError, match="no version is stable; `catbreeds run` trains and pushes one"):
        LocalServer(registry, "catbreeds")


def test_local_server_reports_the_server_error_if_a_model_does_not_load(registry, tmp_path, monkeypatch):
    write_record(tmp_path / "model", {})
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"no model")
    registry.push(tmp_path / "model", {})
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(ProgramError, match="saved_model"):
        LocalServer(registry, "catbreeds")
    assert not list((tmp_path / "temporary").iterdir())
