"""Fixtures: a registry of toy models that return their version, model servers, and a fake Kubernetes API."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

from serving.registry import Registry
from serving.rollout.local_fleet import MODEL_SERVER, LocalFleet
from tests.serving.classifier import BREEDS, Classifier
from tests.serving.gateway.gateways import PHOTOS
from tests.serving.model_server.servers import ModelServer
from tests.serving.model_server.toys import Adder
from tests.serving.rollout.kubernetes_api import KubernetesApi

FLAGS = ("--max_num_load_retries=0", "--allow_version_labels_for_unavailable_models=true")

# A fake kubectl. Pods run on this machine, so port forwarding prints the pod's own port. A file next to the script with
# the name of a pod selects a failure: the script then prints and does what kubectl would.
KUBECTL = """#!/bin/sh
for last; do
    case $last in pod/*) pod=${last#pod/};; esac
done
folder=$(dirname "$0")
echo $$ >> "$folder/processes"
case $(cat "$folder/$pod" 2>/dev/null) in
    forbidden)
        echo 'Error from server (Forbidden): pods "'$pod'" is forbidden: User "jane" cannot get resource "pods"' >&2
        exit 1;;
    "not running")
        echo "error: unable to forward port because pod is not running. Current status=Pending" >&2
        exit 1;;
    "dead node")
        trap "" TERM
        exec sleep 600;;
    "lost")
        echo "Forwarding from 127.0.0.1$last -> ${last#:}"
        echo "error: lost connection to pod" >&2
        exit 1;;
esac
echo "Forwarding from 127.0.0.1$last -> ${last#:}"
exec sleep 600
"""


class Failing(tf.Module):
    """A classifier that fails every request."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify(self, image_bytes):
        with tf.control_dependencies([tf.debugging.Assert(tf.size(image_bytes) < 0, ["no"])]):
            probabilities = tf.zeros([tf.size(image_bytes), len(BREEDS)])
        return {"probabilities": probabilities, "breeds": tf.broadcast_to(BREEDS, tf.shape(probabilities))}

    def save(self, path):
        tf.saved_model.save(self, str(path), signatures=self.classify)


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory) -> tuple[Path, list[float]]:
    """SavedModels `good` and `failing`, and the probability that `good` predicts for the breed of each of PHOTOS."""
    folder = tmp_path_factory.mktemp("classifiers")
    for name, model in {"good": Classifier(), "failing": Failing()}.items():
        model.save(folder / name)
        (folder / name / "assets.extra").mkdir()
        (folder / name / "assets.extra" / "catbreeds.json").write_text(
            json.dumps({"model_digest": name, "breeds": BREEDS})
        )
    probabilities = tf.saved_model.load(str(folder / "good")).signatures["serving_default"](
        image_bytes=tf.constant(PHOTOS)
    )["probabilities"]
    return folder, [float(row[breed]) for breed, row in enumerate(probabilities.numpy())]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Adders 1 to 4 as SavedModels; 4 cannot be loaded."""
    folder = tmp_path_factory.mktemp("models")
    for version in range(1, 5):
        model = folder / str(version)
        Adder(version).save(model)
        (model / "assets.extra").mkdir()
        (model / "assets.extra" / "catbreeds.json").write_text(json.dumps({"model_digest": f"recipe-{version}"}))
    (folder / "4" / "saved_model.pb").write_bytes(b"no graph")
    return folder


@pytest.fixture(scope="session")
def model_servers(tmp_path_factory) -> Iterator[list[ModelServer]]:
    """Three running servers without a model; each test configures them with its own."""
    folder = tmp_path_factory.mktemp("servers")
    config = folder / "none.config"
    config.write_text("model_config_list {}")
    with ThreadPoolExecutor() as threads:  # TensorFlow takes long to import
        servers = list(threads.map(lambda _: ModelServer(folder, f"--model_config_file={config}", *FLAGS), range(3)))
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def registry(tmp_path, models, request) -> Registry:
    """Versions 1 (stable), 2, 3 and 4 (broken). The model has the name of the test."""
    registry = Registry(tmp_path / "work" / "serving" / request.node.name[:60])
    for version in range(1, 5):
        assert registry.push(models / str(version), {}) == version
    return registry


@pytest.fixture
def fleet(tmp_path, registry) -> LocalFleet:
    return LocalFleet(tmp_path / "work", registry.base)


@pytest.fixture
def announce(fleet, model_servers) -> Iterator[Callable[[int], list[ModelServer]]]:
    """Add the first `count` servers to the fleet, and return them."""
    with contextlib.ExitStack() as announcements:

        def announce(count: int) -> list[ModelServer]:
            for server in model_servers[:count]:
                announcements.enter_context(fleet.announced(MODEL_SERVER, f"127.0.0.1:{server.port}"))
            return model_servers[:count]

        yield announce


@pytest.fixture
def api(tmp_path, monkeypatch) -> Iterator[KubernetesApi]:
    """A fake Kubernetes API that kubectl's configuration points to, and a fake kubectl."""
    api = KubernetesApi()
    api.write_kubeconfig(tmp_path / "kubeconfig")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(KUBECTL)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield api
    api.close()
