"""Fixtures of the cluster tests: the cluster, definitions of custom resources, one deployment."""

import json
import os
from collections.abc import Iterator

import kubernetes
import pytest
import tensorflow as tf

from serving.model_files import GOLDEN_REQUESTS_FILE
from serving.registry import Registry
from serving.rollout.golden_requests import GoldenRequest, golden_requests_document
from tests.cluster.clusters import MODEL, Deployed, get, in_namespace, kubectl, temporary_namespace
from tests.cluster.kubelet import Kubelet
from tests.serving.classifier import BREEDS, Classifier
from tests.serving.gateway.gateways import PHOTOS
from tests.serving.k8s import custom_resources
from tests.serving.k8s.variants import OVERLAYS, Variant, variants
from tests.serving.model_server.servers import eventually


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Skip all tests if KUBECONFIG is not set, because others may use kubectl's default cluster."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set; CONTRIBUTING.md describes how to start a cluster")


@pytest.fixture(scope="session")
def rendered(cluster, tmp_path_factory) -> list[Variant]:
    """Return all variants of the manifests."""
    return [one for overlay in OVERLAYS for one in variants(overlay, tmp_path_factory.mktemp(overlay))]


@pytest.fixture(scope="session")
def namespace(cluster) -> Iterator[str]:
    """Create an empty namespace."""
    with temporary_namespace() as name:
        yield name


@pytest.fixture(scope="session")
def defined_groups(cluster) -> Iterator[set[str]]:
    """Create missing definitions of custom resources and return the defined API groups; delete the created ones."""
    existing = {one["metadata"]["name"] for one in get("customresourcedefinitions")["items"]}
    groups, created = {name.partition(".")[2] for name in existing} & {*custom_resources.GROUPS}, []
    for group in set(custom_resources.GROUPS) - groups:
        try:
            created += custom_resources.definitions(group)
        except custom_resources.Unavailable:
            continue
        groups.add(group)
    if created:
        kubectl("apply", "--server-side", objects=created)
    for one in created:
        kubectl("wait", "--for", "condition=Established", f"crd/{one['metadata']['name']}")
    yield groups
    if created:
        kubectl("delete", objects=created)


@pytest.fixture(scope="session")
def deployed(rendered, tmp_path_factory) -> Iterator[Deployed]:
    """Deploy the overlay `local`; no version has been promoted yet."""
    folder = tmp_path_factory.mktemp("deployed")
    model = folder / "model"
    Classifier().save(model)
    predicted = tf.saved_model.load(str(model)).signatures["serving_default"](image_bytes=tf.constant(PHOTOS[:1]))
    golden = [GoldenRequest(PHOTOS[0], BREEDS[0], float(predicted["probabilities"][0, 0]))]
    (model / "assets.extra").mkdir()
    (model / GOLDEN_REQUESTS_FILE).write_text(json.dumps(golden_requests_document(golden)))
    registry = Registry(folder / "work" / "serving" / MODEL)
    for version in range(1, 5):
        (model / "assets.extra" / "catbreeds.json").write_text(
            json.dumps({"model_digest": f"recipe-{version}", "breeds": BREEDS})
        )
        assert registry.push(model, {}) == version
    for name in ("models", "account", "pods"):
        (folder / name).mkdir()
    (folder / "models" / MODEL).mkdir()
    with temporary_namespace() as name, kubernetes.config.new_client_from_config(os.environ["KUBECONFIG"]) as api:
        kubelet = Kubelet(api, name, folder / "pods")
        try:
            local = next(one for one in rendered if one.name == "local")
            objects = in_namespace(local.objects, name, kubelet.node)
            deployed = Deployed(name, objects, kubelet, registry, folder / "models", folder / "account")
            deployed.apply()
            kubectl("scale", "deployment/model-server", "deployment/gateway", "--replicas", 2, "--namespace", name)
            deployed.sign_in()
            for version in (1, 2):
                deployed.publish(version)
            yield deployed
        finally:
            kubelet.close()
        assert kubelet.failure is None


@pytest.fixture(scope="session")
def served(deployed) -> Deployed:
    """Promote the first version. Before that, no model server starts."""
    kubelet = deployed.kubelet
    eventually(lambda: [pod.process for pod in kubelet.pods.values() if pod.app == "model-server"] == [None, None])
    deployed.run("promote", 1)
    eventually(lambda: len(kubelet.ready("model-server")) == len(kubelet.ready("gateway")) == 2)
    return deployed
