"""Every variant renders, is valid on the oldest and newest supported Kubernetes, and follows every rule."""

import contextlib
import functools
import json

import kubernetes_validate
import pytest
import yaml

from tests.serving.k8s import custom_resources
from tests.serving.k8s.manifest_rules import MANIFEST_RULES, changed, drop, put
from tests.serving.k8s.variants import K8S, OVERLAYS, SUPPORTED, optional_components


@functools.cache
def invalid(text: str, version: str) -> str | None:
    """Return the error in an object, given as JSON, or None. Cached, because variants share objects."""
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{error.message} at {list(error.absolute_path)}"
    return None


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variant_renders_and_is_valid(rendered, overlay, version):
    number = len(optional_components(overlay)) - 1  # without review, which is only in combinations with capture
    names = {variant.name.removeprefix(overlay) for variant in rendered[overlay]}
    assert len(names) == 1 + number + number * (number - 1) // 2 + len(("+capture+review", "all"))
    assert "+capture+review" in names
    for variant in rendered[overlay]:
        for object_ in variant.objects:
            if custom_resources.group(object_) not in custom_resources.GROUPS:
                reason = invalid(json.dumps(object_, sort_keys=True), version)
                assert reason is None, f"{variant.name}: {object_['kind']} {object_['metadata']['name']}: {reason}"


def test_fast_math_sets_the_precision_of_the_model_servers_and_of_nothing_else(rendered):
    variable = {"name": "TF_SET_ONEDNN_FPMATH_MODE", "value": "BF16"}
    for variant in [*rendered["local"], *rendered["gke"]]:
        names = {name for name, _, container in variant.containers() if variable in container.get("env", [])}
        assert names == ({"model-server"} if "fast-math" in variant.name else set()), variant.name


@pytest.mark.parametrize("version", SUPPORTED)
def test_an_invalid_object_fails_validation(rendered, version):
    deployment = rendered["local"][0].find("Deployment", "gateway")
    assert invalid(json.dumps(deployment | {"speck": {}}), version)


def require_definitions(api_group: str) -> None:
    """Skip the test if the definitions are not available."""
    try:
        custom_resources.definitions(api_group)
    except custom_resources.Unavailable as error:
        pytest.skip(str(error))


# The schemas of custom resources are part of their operators, not of Kubernetes.
@pytest.mark.parametrize("api_group", custom_resources.GROUPS)
def test_custom_resources_of_every_variant_are_valid(rendered, api_group):
    require_definitions(api_group)
    checked = 0
    for variant in [*rendered["local"], *rendered["gke"]]:
        for object_ in variant.objects:
            if custom_resources.group(object_) == api_group:
                reason = custom_resources.invalid(json.dumps(object_, sort_keys=True))
                assert reason is None, f"{variant.name}: {object_['kind']} {object_['metadata']['name']}: {reason}"
                checked += 1
    assert checked


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("HTTPRoute/catbreeds", put("HTTPRoute/catbreeds", "spec/rulez", [])),
        ("HTTPRoute/catbreeds", put("HTTPRoute/catbreeds", "spec/rules/0/matches/0/path/type", "Prefix")),
        ("Gateway/catbreeds", drop("Gateway/catbreeds", "spec/gatewayClassName")),
        ("PodMonitor/gateway", put("PodMonitor/gateway", "spec/podMetricsEndpoints/0/interval", "soon")),
        ("PrometheusRule/catbreeds", put("PrometheusRule/catbreeds", "spec/groups/0/rules/0/labels/severity", 1)),
        ("PrometheusRule/catbreeds", put("PrometheusRule/catbreeds", "apiVersion", "monitoring.coreos.com/v2")),
    ],
)
def test_an_invalid_custom_resource_fails_validation(rendered, which, change):
    object_ = changed(rendered["gke"][-1], change).find(*which.split("/"))
    require_definitions(custom_resources.group(object_))
    assert custom_resources.invalid(json.dumps(object_))


def test_every_overlay_lists_every_component():
    components = {f"../../components/{folder.name}" for folder in (K8S / "components").iterdir()}
    for overlay in OVERLAYS:
        text = (K8S / "overlays" / overlay / "kustomization.yaml").read_text()
        missing = {name for name in components if name not in text}
        assert not missing, f"{overlay} does not list {missing}"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", MANIFEST_RULES)
def test_every_variant_follows_the_rule(rendered, overlay, name):
    for variant in rendered[overlay]:
        violations = list(MANIFEST_RULES[name].check(variant))
        assert not violations, variant.name


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name in MANIFEST_RULES for number in range(len(MANIFEST_RULES[name].changes))],
)
def test_a_broken_manifest_fails_the_check(rendered, name, number):
    violations = []
    for variant in rendered["gke"]:
        with contextlib.suppress(LookupError):  # this variant does not contain the object
            violations += MANIFEST_RULES[name].check(changed(variant, MANIFEST_RULES[name].changes[number]))
    assert violations


def permissions(role: dict) -> set[tuple[str, str, str]]:
    """Return resource, verb and name of each permission of a Role."""
    assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {""}
    return {
        (resource, verb, name)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_role_for_rollouts_from_outside_adds_the_permissions_of_kubectl_port_forward(rendered, version):
    outside = yaml.safe_load((K8S / "rollout-from-outside.yaml").read_text())
    assert invalid(json.dumps(outside), version) is None
    inside = permissions(rendered["local"][0].find("Role", "rollout"))
    forwarding = {("pods", "get", "*"), ("pods/portforward", "get", "*"), ("pods/portforward", "create", "*")}
    assert permissions(outside) == inside | forwarding
    assert all(variant.find("Role", "rollout-from-outside") is None for variant in rendered["gke"])
