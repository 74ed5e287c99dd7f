"""RBAC in the cluster: the ServiceAccounts have the permissions that rollout needs, and no others."""

import json

import pytest
import yaml

from tests.cluster.clusters import in_namespace, kubectl
from tests.serving.k8s.variants import K8S

ROLLOUT_PERMISSIONS = {
    ("configmaps", "get", "model-config"),
    ("configmaps", "update", "model-config"),
    ("configmaps", "create", "*"),
    ("pods", "list", "*"),
}
PORT_FORWARD_PERMISSIONS = {("pods", "get", "*"), ("pods/portforward", "get", "*"), ("pods/portforward", "create", "*")}


@pytest.fixture(scope="session")
def kubectl_as(served):
    """Return a function that runs kubectl as a ServiceAccount of the namespace."""
    role = yaml.safe_load((K8S / "rollout-from-outside.yaml").read_text())
    role["metadata"]["namespace"] = served.namespace
    kubectl("apply", objects=in_namespace([role], served.namespace))
    where = ("--namespace", served.namespace)
    kubectl(*where, "create", "serviceaccount", "outside")
    account = f"{served.namespace}:outside"
    kubectl(*where, "create", "rolebinding", "outside", "--role", "rollout-from-outside", "--serviceaccount", account)

    def kubectl_as(account: str, *arguments: object, **options):
        user = f"system:serviceaccount:{served.namespace}:{account}"
        return kubectl(*where, "--as", user, *arguments, check=False, **options)

    return kubectl_as


def permissions(kubectl_as, account: str, namespace: str) -> set[tuple[str, str, str]]:
    """Return resource, verb and name of every permission that an account has in the namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    done = kubectl_as(account, "create", "--output", "json", objects=[review])
    assert done.returncode == 0, done.stderr
    rules = json.loads(done.stdout)["status"]["resourceRules"]
    return {
        (resource, verb, name)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


@pytest.mark.parametrize(
    ("account", "expected"),
    [("rollout", ROLLOUT_PERMISSIONS), ("outside", ROLLOUT_PERMISSIONS | PORT_FORWARD_PERMISSIONS)],
)
def test_an_account_has_the_permissions_of_its_role_and_no_others(kubectl_as, served, account, expected):
    assert (
        permissions(kubectl_as, account, served.namespace) - permissions(kubectl_as, "default", served.namespace)
        == expected
    )
    assert permissions(kubectl_as, account, "default") == permissions(kubectl_as, "default", "default")


@pytest.mark.parametrize("verb", ["get", "update", "create", "list"])
def test_rollout_has_permission_for_its_api_calls(kubectl_as, served, verb):
    config = served.live()
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other", "namespace": served.namespace}}
    done = {
        "get": lambda: kubectl_as("rollout", "get", "configmap", "model-config"),
        "update": lambda: kubectl_as("rollout", "replace", "--dry-run=server", objects=[config]),
        "create": lambda: kubectl_as("rollout", "create", "--dry-run=server", objects=[other]),
        "list": lambda: kubectl_as("rollout", "get", "pods"),
    }[verb]()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "call",
    [
        "get configmaps",
        "get configmap kube-root-ca.crt",
        "delete configmap model-config",
        'patch configmap model-config --patch {"data":{"note":"mine"}}',
        "get pod POD",
        "delete pod POD",
        "logs POD",
        "exec POD -- true",
        "port-forward pod/POD :8500",
        "get secrets",
        "get deployments",
        "get services",
        "get endpointslices",
        "scale deployment/gateway --replicas 0",
        "create serviceaccount mine",
        "create token rollout",
        "get pods --namespace kube-system",
        "get nodes",
    ],
)
def test_rollout_has_no_permission_for_other_api_calls(kubectl_as, served, call):
    pod = served.kubelet.ready("model-server")[0].name
    done = kubectl_as("rollout", *call.replace("POD", pod).split(" "))
    assert (done.returncode, "forbidden" in done.stderr) == (1, True), done.stderr
