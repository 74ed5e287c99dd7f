"""The API server accepts every variant of the manifests, and applying one again changes nothing."""

import json

import pytest

from tests.cluster.clusters import get, in_namespace, kubectl
from tests.serving.k8s import custom_resources
from tests.serving.k8s.manifest_rules import changed, put
from tests.serving.k8s.variants import OVERLAYS, Object, Variant
from tests.serving.model_server.servers import eventually


def validation_errors(variants: list[Variant], namespace: str, groups: set[str], custom: bool) -> str:
    """Return the errors and warnings of a strict dry run with the objects of some API groups."""
    # Variants share most of their objects.
    objects = {json.dumps(object_, sort_keys=True) for variant in variants for object_ in variant.objects}
    selected: list[Object] = []
    for object_ in in_namespace(list(map(json.loads, sorted(objects))), namespace):
        group = custom_resources.group(object_)
        if (group in groups) if custom else (group not in groups):
            selected.append(object_)
    assert selected
    done = kubectl("apply", "--dry-run=server", "--validate=strict", objects=selected, check=False)
    assert done.stdout.count("\n") == len(selected) or done.returncode
    return done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_accepts_every_variant(rendered, namespace, overlay):
    variants = [one for one in rendered if one.name.split("+")[0] == overlay]
    assert validation_errors(variants, namespace, {*custom_resources.GROUPS}, custom=False) == ""


@pytest.mark.parametrize("group", custom_resources.GROUPS)
def test_the_api_server_accepts_the_custom_resources_of_every_variant(rendered, namespace, defined_groups, group):
    if group not in defined_groups:
        with pytest.raises(custom_resources.Unavailable) as missing:
            custom_resources.definitions(group)
        pytest.skip(str(missing.value))
    assert validation_errors(rendered, namespace, {group}, custom=True) == ""


@pytest.mark.parametrize(
    "change",
    [
        put("Service/gateway", "spec/speck", 1),
        put("Deployment/gateway", "spec/template/spec/containers/0/resources/requests/memory", "3Gi"),
        put("HorizontalPodAutoscaler/gateway", "spec/minReplicas", 9),
        put("Deployment/page", "spec/template/spec/hostNetwork", True),  # warning of Pod Security
    ],
)
def test_the_api_server_rejects_invalid_manifests(rendered, namespace, change):
    variant = changed(next(one for one in rendered if one.name == "gke"), change)
    assert validation_errors([variant], namespace, {*custom_resources.GROUPS}, custom=False)


def test_a_job_of_the_drift_cron_job_gets_a_pod(rendered, namespace):
    variant = next(one for one in rendered if one.name == "local+capture")
    names = ("drift", "captures", "models")
    kinds = variant.of_kind("ServiceAccount", "CronJob", "PersistentVolumeClaim")
    objects = [one for one in kinds if one["metadata"]["name"] in names]
    assert len(objects) == 4
    kubectl("apply", objects=in_namespace(objects, namespace))
    kubectl("create", "job", "drift-now", "--from", "cronjob/drift", "--namespace", namespace)
    eventually(lambda: get("job/drift-now", "--namespace", namespace).get("status", {}).get("active") == 1)
    (pod,) = get("pods", "--selector", "job-name=drift-now", "--namespace", namespace)["items"]
    assert pod["spec"]["serviceAccountName"] == "drift"


def test_applying_again_after_promotions_changes_nothing(served):
    def resource_versions() -> dict[str, str]:
        kinds = (
            "deployments,services,configmaps,poddisruptionbudgets,networkpolicies,roles,rolebindings,serviceaccounts"
        )
        found = get(kinds, "--namespace", served.namespace)["items"]
        by_generation = {"Deployment", "PodDisruptionBudget"}  # their status changes the resource version
        return {
            f"{one['kind']}/{one['metadata']['name']}": str(
                one["metadata"]["generation" if one["kind"] in by_generation else "resourceVersion"]
            )
            for one in found
        }

    served.reset_to(1)
    served.run("promote", 2)
    pods, before = set(served.kubelet.pods), resource_versions()
    difference = kubectl("diff", objects=served.objects, check=False)
    assert (difference.returncode, difference.stdout) == (0, "")
    served.apply()
    assert (set(served.kubelet.pods), resource_versions()) == (pods, before)
