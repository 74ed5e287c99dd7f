"""RBAC of the cluster: ServiceAccounts may do what rollout does, and nothing else."""

import json

import pytest
import yaml

from tests.cluster.clusters import kubectl, moved
from tests.serving.k8s.variants import K8S

INSIDE = {
    ("configmaps", "get", "model-config"),
    ("configmaps", "update", "model-config"),
    ("configmaps", "create", "*"),
    ("pods", "list", "*"),
}
FORWARDING = {("pods", "get", "*"), ("pods/portforward", "get", "*"), ("pods/portforward", "create", "*")}


@pytest.fixture(scope="session")
def asked(served):
    """Runs kubectl as a ServiceAccount of the namespace."""
    role = yaml.safe_load((K8S / "rollout-from-outside.yaml").read_text())
    role["metadata"]["namespace"] = served.namespace
    kubectl("apply", objects=moved([role], served.namespace))
    where = ("--namespace", served.namespace)
    kubectl(*where, "create", "serviceaccount", "outside")
    account = f"{served.namespace}:outside"
    kubectl(*where, "create", "rolebinding", "outside", "--role", "rollout-from-outside", "--serviceaccount", account)

    def asked(account: str, *arguments: object, **options):
        user = f"system:serviceaccount:{served.namespace}:{account}"
        return kubectl(*where, "--as", user, *arguments, check=False, **options)

    return asked


def rights(asked, account: str, namespace: str) -> set[tuple[str, str, str]]:
    """Resource, verb and name of all that the server lets an account do in the namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    done = asked(account, "create", "--output", "json", objects=[review])
    assert done.returncode == 0, done.stderr
    rules = json.loads(done.stdout)["status"]["resourceRules"]
    return {
        (resource, verb, name)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


@pytest.mark.parametrize(("account", "expected"), [("rollout", INSIDE), ("outside", INSIDE | FORWARDING)])
def test_an_account_has_the_rights_of_its_role_and_no_others(asked, served, account, expected):
    assert rights(asked, account, served.namespace) - rights(asked, "default", served.namespace) == expected
    assert rights(asked, account, "default") == rights(asked, "default", "default")


@pytest.mark.parametrize("verb", ["get", "update", "create", "list"])
def test_what_rollout_calls_is_allowed(asked, served, verb):
    config = served.live()
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other", "namespace": served.namespace}}
    done = {
        "get": lambda: asked("rollout", "get", "configmap", "model-config"),
        "update": lambda: asked("rollout", "replace", "--dry-run=server", objects=[config]),
        "create": lambda: asked("rollout", "create", "--dry-run=server", objects=[other]),
        "list": lambda: asked("rollout", "get", "pods"),
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
def test_what_rollout_does_not_call_is_refused(asked, served, call):
    pod = served.kubelet.ready("model-server")[0].name
    done = asked("rollout", *call.replace("POD", pod).split(" "))
    assert (done.returncode, "forbidden" in done.stderr) == (1, True), done.stderr
