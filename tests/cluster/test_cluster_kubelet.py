"""Tests that need a real kubelet: rollout from outside through `kubectl port-forward`, and a restarted container.

The cluster is the one of docs/kubernetes.md, "On a laptop". Its node mounts the models of `make demo`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.clusters import get, in_namespace, kubectl, temporary_namespace
from tests.running import catbreeds
from tests.serving.k8s.variants import K8S, ROOT
from tests.serving.model_server.servers import DEADLINE

_MODEL_SERVERS = ("pods", "--selector", "app.kubernetes.io/name=model-server", "--namespace")
_START_SECONDS = 10 * DEADLINE  # includes pulling an image of several GB


@pytest.fixture(scope="session")
def registry(cluster) -> Path:
    """Return the workdir whose models the node mounts."""
    if not any(node["status"].get("nodeInfo", {}).get("kubeletVersion") for node in get("nodes")["items"]):
        pytest.skip("no node of the cluster has a kubelet")
    (node,) = yaml.safe_load((K8S / "overlays" / "local" / "kind.yaml").read_text())["nodes"]
    workdir = ROOT / Path(node["extraMounts"][0]["hostPath"]).parent
    if not workdir.is_dir():
        pytest.skip(f"{workdir} does not exist; create it with `make demo`")
    return workdir


@pytest.fixture(scope="session")
def outside(registry, rendered) -> Iterator[str]:
    """Deploy the overlay `local` and promote the first version from outside the cluster."""
    local = next(one for one in rendered if one.name == "local")
    with temporary_namespace() as name:
        kubectl("apply", objects=in_namespace(local.objects, name))
        promote(registry, name)
        wait_for_model_server(name)
        yield name


def promote(workdir: Path, namespace: str) -> str:
    """Promote the stable version again, which updates every model server."""
    done = catbreeds("promote", 1, "--workdir", workdir, "--namespace", namespace)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_model_server(namespace: str) -> None:
    kubectl("--namespace", namespace, "rollout", "status", "deployment/model-server", f"--timeout={_START_SECONDS}s")


def test_a_promotion_from_outside_reaches_pods_through_forwarded_ports(registry, outside):
    assert promote(registry, outside).endswith("loaded on 1 server\n")


def test_a_restarted_container_serves_and_gets_the_next_promotion(registry, outside):
    (pod,) = get(*_MODEL_SERVERS, outside)["items"]
    name = ("--namespace", outside, "exec", pod["metadata"]["name"], "--")
    kubectl(*name, "sh", "-c", "kill -9 $(pidof tensorflow_model_server)", check=False)
    restarts = "jsonpath={.status.containerStatuses[0].restartCount}=1"
    kubectl("--namespace", outside, "wait", "--for", restarts, f"pod/{pod['metadata']['name']}", "--timeout=300s")
    wait_for_model_server(outside)
    assert promote(registry, outside).endswith("loaded on 1 server\n")
