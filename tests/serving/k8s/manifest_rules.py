"""Rules for every variant of the manifests that a schema cannot express.

A rule is a check that yields the violations in a variant. Each rule also has changes to a valid variant that must
cause a violation, which proves that the check works.
"""

import copy
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from serving.gateway.settings import PREFIX, Settings
from serving.model_server import flags
from serving.rollout.kubernetes_fleet import CONFIG_MAP
from serving.rollout.serving_config import CONFIG_FILE, TRAFFIC_FILE
from tests.serving.k8s.variants import Object, Variant

Check = Callable[[Variant], Iterator[str]]
Change = Callable[[Variant], None]

# Name and keys of the ConfigMap that the rollout creates, see serving/rollout/kubernetes_fleet.py.
LIVE_CONFIG = (CONFIG_MAP, {CONFIG_FILE, TRAFFIC_FILE})
CAPTURE_FOLDER = f"{PREFIX}CAPTURE_FOLDER"
_CLUSTER_SCOPED = ("Namespace", "PersistentVolume")
# Volumes that a pod may write to, in folders of the same name.
_PHOTO_VOLUMES = {"gateway": ("captures",), "drift": ("captures",), "review": ("captures", "photos")}


@dataclass(frozen=True)
class ManifestRule:
    """A check, and changes that must make it fail.

    Attributes:
        check: Yields the violations in a variant.
        changes: Changes to a valid variant that cause a violation.
    """

    check: Check
    changes: tuple[Change, ...]


MANIFEST_RULES: dict[str, ManifestRule] = {}


def manifest_rule(*changes: Change) -> Callable[[Check], Check]:
    """Register a check as a rule under the name of its function."""

    def add(check: Check) -> Check:
        assert changes, "a check needs at least one change that makes it fail"
        MANIFEST_RULES[check.__name__] = ManifestRule(check, changes)
        return check

    return add


def changed(variant: Variant, change: Change) -> Variant:
    """Return a changed copy of a variant."""
    other = Variant(variant.name, copy.deepcopy(variant.objects))
    change(other)
    return other


def put(target: str, path: str, value: Any) -> Change:
    """Set a field.

    Args:
        target: Object, as Kind/name.
        path: Keys and indices of the field, separated by slashes.
        value: New value.
    """

    def change(variant: Variant) -> None:
        *parents, last = path.split("/")
        parent = _descend(_find(variant, target), parents)
        parent[_key(parent, last)] = value

    return change


def drop(target: str, path: str = "") -> Change:
    """Remove a field, or without a path the whole object."""

    def change(variant: Variant) -> None:
        if not path:
            variant.objects.remove(_find(variant, target))
            return
        *parents, last = path.split("/")
        parent = _descend(_find(variant, target), parents)
        del parent[_key(parent, last)]

    return change


def add(target: str, path: str, value: Any) -> Change:
    """Append to a list."""
    return lambda variant: _descend(_find(variant, target), path.split("/")).append(value)


def insert(object_: Object) -> Change:
    """Add an object."""
    return lambda variant: variant.objects.append(object_)


def _find(variant: Variant, target: str) -> Object:
    kind, name = target.split("/")
    pattern = re.compile(rf"{name}(-[a-z0-9]{{10}})?")  # generated names end with a hash
    matching = [object_ for object_ in variant.of_kind(kind) if pattern.fullmatch(object_["metadata"]["name"])]
    if not matching:
        raise LookupError(f"{variant.name} has no {target}")
    return matching[0]


def _key(parent: Any, step: str) -> Any:
    return int(step) if isinstance(parent, list) else step


def _descend(value: Any, steps: list[str]) -> Any:
    for step in steps:
        value = value[_key(value, step)]
    return value


_POD = "spec/template/spec"
_CONTAINER = f"{_POD}/containers/0"
_JOB_POD = "spec/jobTemplate/spec/template/spec"
_JOB_CONTAINER = f"{_JOB_POD}/containers/0"


# --- references


@manifest_rule(
    put("Service/gateway", "spec/selector", {"app.kubernetes.io/name": "gate"}),
    put("Deployment/page", "spec/template/metadata/labels", {"app.kubernetes.io/name": "pages"}),
    put("PodDisruptionBudget/page", "spec/selector/matchLabels", {"app.kubernetes.io/name": "gateway"}),
    put("NetworkPolicy/gateway", "spec/podSelector/matchLabels", {"app": "gateway"}),
    put("NetworkPolicy/model-server", "spec/ingress/0/from/0/podSelector/matchLabels", {"app": "gateway"}),
    put(
        "Deployment/gateway",
        f"{_POD}/topologySpreadConstraints/0/labelSelector/matchLabels",
        {"app.kubernetes.io/name": "page"},
    ),
    put("PodMonitor/gateway", "spec/selector/matchLabels", {"app.kubernetes.io/name": "gate"}),
)
def selectors_match_the_intended_pods(variant: Variant) -> Iterator[str]:
    labels = {name: template["metadata"]["labels"] for name, template in variant.pods()}
    for deployment in variant.of_kind("Deployment"):
        name = deployment["metadata"]["name"]
        selectors = [deployment["spec"]["selector"]]
        spread = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        for selector in selectors + [constraint["labelSelector"] for constraint in spread]:
            if _matching_pods(selector, labels) != {name}:
                yield f"{selector} of Deployment {name} matches {_matching_pods(selector, labels)}"
    for object_ in variant.of_kind("Service", "PodDisruptionBudget", "PodMonitor"):
        kind, name, selector = object_["kind"], object_["metadata"]["name"], object_["spec"]["selector"]
        selector = {"matchLabels": selector} if kind == "Service" else selector
        if _matching_pods(selector, labels) != {name}:
            yield f"{kind} {name} matches {_matching_pods(selector, labels)}"
    for policy in variant.of_kind("NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        peers = [peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])]
        own = [peer["podSelector"] for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer]
        for selector in [policy["spec"]["podSelector"], *own]:
            if not _matching_pods(selector, labels):
                yield f"{selector} of NetworkPolicy {policy['metadata']['name']} matches no pod"


def _matching_pods(selector: Object, labels: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, own in labels.items() if matches(selector, own)}


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Return whether a LabelSelector matches; the only supported operator is In."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def _ports(container: Object) -> dict[Any, int]:
    """Return the container ports by name and by number."""
    ports = container.get("ports", [])
    return {key: port["containerPort"] for port in ports for key in (port["name"], port["containerPort"])}


@manifest_rule(
    put("Service/page", "spec/ports/0/targetPort", 80),
    put("Service/model-server", "spec/ports/0/targetPort", "grcp"),
    put("HTTPRoute/catbreeds", "spec/rules/0/backendRefs/0/port", 8000),
    put("HTTPRoute/catbreeds", "spec/rules/1/backendRefs/0/name", "web"),
    put("PodMonitor/model-server", "spec/podMetricsEndpoints/0/port", "http"),
    put("NetworkPolicy/model-server", "spec/ingress/0/ports/0/port", "http2"),
    put("NetworkPolicy/gateway", "spec/egress/0/ports/0/port", 8501),
)
def ports_refer_to_container_ports(variant: Variant) -> Iterator[str]:
    ports = {name: _ports(container) for name, _, container in variant.containers()}
    services = {service["metadata"]["name"]: service["spec"]["ports"] for service in variant.of_kind("Service")}
    for name, offered in services.items():
        for port in offered:
            if port["targetPort"] not in ports[name]:
                yield f"Service {name}: its pods have no port {port['targetPort']}"
    for route in variant.of_kind("HTTPRoute"):
        for backend in [backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]:
            if backend["port"] not in [port["port"] for port in services.get(backend["name"], [])]:
                yield f"HTTPRoute: Service {backend['name']} has no port {backend['port']}"
    for monitor in variant.of_kind("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in ports[monitor["metadata"]["name"]]:
                yield f"PodMonitor {monitor['metadata']['name']}: no port {endpoint['port']}"
    labels = {name: template["metadata"]["labels"] for name, template in variant.pods()}
    for policy in variant.of_kind("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for selected in _matching_pods(policy["spec"]["podSelector"], labels):
                if not any(port["port"] in ports[selected] for port in rule["ports"]):
                    yield f"NetworkPolicy {policy['metadata']['name']}: allows no port of {selected}"
        for rule in policy["spec"].get("egress", []):
            for peer in [peer for peer in rule.get("to", []) if "podSelector" in peer]:
                for selected in _matching_pods(peer["podSelector"], labels):
                    # Egress rules allow the first port of a pod: a gateway uses only the gRPC port of a model server.
                    first = next(iter(ports[selected].values()))
                    if [port["port"] for port in rule["ports"]] != [first]:
                        yield f"NetworkPolicy {policy['metadata']['name']}: {selected} is not reachable at port {first}"


@manifest_rule(
    put("Deployment/gateway", f"{_CONTAINER}/readinessProbe/httpGet/port", 80),
    put("Deployment/model-server", f"{_CONTAINER}/livenessProbe/grpc/port", 8501),
    drop("Deployment/page", f"{_CONTAINER}/startupProbe"),
)
def every_server_has_three_probes_on_its_own_ports(variant: Variant) -> Iterator[str]:
    for name, _, container in variant.server_containers():
        ports = _ports(container)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            port = probe.get("httpGet", probe.get("grpc", {})).get("port")
            if port not in ports or ("grpc" in probe and port != ports.get("grpc")):
                yield f"{kind} of {name} uses port {port}"


@manifest_rule(
    put("Deployment/model-server", f"{_CONTAINER}/volumeMounts/0/name", "modles"),
    add("Deployment/page", f"{_POD}/volumes", {"name": "unused", "emptyDir": {}}),
    drop("PersistentVolumeClaim/models"),
    drop("PersistentVolume/catbreeds-models"),
    drop("ServiceAccount/gateway"),
    drop("ConfigMap/model-server-files"),
    drop("ConfigMap/model-server-files", "data/monitoring.config"),
    put("Deployment/model-server", f"{_POD}/volumes/1/configMap/name", "model-config-2"),
    put("Deployment/model-server", f"{_POD}/volumes/1/configMap/optional", True),
    put("Deployment/gateway", f"{_CONTAINER}/env/2/value", "/etc/model-config/shares.json"),
)
def objects_that_pods_refer_to_exist(variant: Variant) -> Iterator[str]:
    for name, template in variant.pods():
        spec = template["spec"]
        if not variant.find("ServiceAccount", spec["serviceAccountName"]):
            yield f"{name}: no ServiceAccount {spec['serviceAccountName']}"
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        if mounted != volumes.keys():
            yield f"{name}: mounts {mounted}, but has the volumes {volumes.keys()}"
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claim = variant.find("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
                # Without the name of a volume, a StorageClass creates it.
                named = claim["spec"].get("volumeName") if claim else None
                if not claim or (named and not variant.find("PersistentVolume", named)):
                    yield f"{name}: no claim or no volume for {volume}"
            elif "configMap" in volume:
                config = volume["configMap"]
                if config.get("optional") and name == "model-server":
                    yield f"{name}: {volume} is optional, so the server would crash without it"
                if config["name"] != LIVE_CONFIG[0] and not variant.find("ConfigMap", config["name"]):
                    yield f"{name}: no ConfigMap {config['name']}"
            elif "emptyDir" not in volume:
                yield f"{name}: {volume} has a type that no check covers"
        for container in spec["containers"]:
            files = [f"{e['name']}={e['value']}" for e in container.get("env", []) if e["name"].endswith("_FILE")]
            for argument in [*container.get("args", []), *files]:
                file = argument.partition("=")[2]
                if file.startswith("/") and not _file_exists(variant, volumes, container, PurePosixPath(file)):
                    yield f"{name}: {argument}: file not found"


def _file_exists(variant: Variant, volumes: dict[str, Object], container: Object, file: PurePosixPath) -> bool:
    for mount in container["volumeMounts"]:
        config = volumes.get(mount["name"], {}).get("configMap")
        if config and str(file.parent) == mount["mountPath"]:
            if config["name"] == LIVE_CONFIG[0]:
                return file.name in LIVE_CONFIG[1]
            return file.name in (variant.find("ConfigMap", config["name"]) or {"data": {}})["data"]
    return False


@manifest_rule(insert({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "model-config"}, "data": {}}))
def no_deploy_touches_the_live_model_configuration(variant: Variant) -> Iterator[str]:
    if variant.find("ConfigMap", LIVE_CONFIG[0]):
        yield "a deploy would overwrite the ConfigMap and revert a promotion"


@manifest_rule(
    put("Service/page", "metadata/namespace", "default"), drop("PersistentVolumeClaim/models", "metadata/namespace")
)
def everything_is_in_one_namespace(variant: Variant) -> Iterator[str]:
    (namespace,) = [object_["metadata"]["name"] for object_ in variant.of_kind("Namespace")]
    for object_ in variant.objects:
        expected = None if object_["kind"] in _CLUSTER_SCOPED else namespace
        if object_["metadata"].get("namespace") != expected:
            yield f"{object_['kind']} {object_['metadata']['name']}"


# --- permissions


@manifest_rule(
    drop("Deployment/page", f"{_CONTAINER}/resources/limits/memory"),
    drop("Deployment/gateway", f"{_CONTAINER}/resources/requests"),
    put("Deployment/model-server", f"{_CONTAINER}/resources/requests/memory", "1Gi"),
    drop("CronJob/drift", f"{_JOB_CONTAINER}/resources/limits"),
)
def every_container_has_requests_and_limits(variant: Variant) -> Iterator[str]:
    for name, _, container in variant.containers():
        requests, limits = (container["resources"].get(kind, {}) for kind in ("requests", "limits"))
        if not {"cpu", "memory"} <= requests.keys() & limits.keys():
            yield f"{name}: {container['resources']}"
        # When a node runs out of memory, it first kills containers that use more than they requested.
        elif requests["memory"] != limits["memory"]:
            yield f"{name}: memory of {requests} differs from {limits}"


@manifest_rule(
    drop("Deployment/gateway", f"{_POD}/securityContext/runAsNonRoot"),
    put("Deployment/gateway", f"{_POD}/securityContext/runAsUser", 0),
    put("Deployment/page", f"{_CONTAINER}/securityContext/capabilities/drop", ["NET_RAW"]),
    put("Deployment/page", f"{_CONTAINER}/securityContext/capabilities/add", ["NET_ADMIN"]),
    put("Deployment/model-server", f"{_CONTAINER}/securityContext/readOnlyRootFilesystem", False),
    put("Deployment/model-server", f"{_CONTAINER}/securityContext/allowPrivilegeEscalation", True),
    put("Deployment/model-server", f"{_CONTAINER}/securityContext/runAsUser", 0),
    drop("Deployment/model-server", f"{_POD}/securityContext/seccompProfile"),
    put("Deployment/page", f"{_POD}/hostNetwork", True),
    put("Namespace/catbreeds", "metadata/labels", {"pod-security.kubernetes.io/enforce": "baseline"}),
    put("CronJob/drift", f"{_JOB_POD}/securityContext/runAsUser", 0),
    drop("CronJob/drift", f"{_JOB_CONTAINER}/securityContext/readOnlyRootFilesystem"),
)
def no_process_can_run_as_root(variant: Variant) -> Iterator[str]:
    for name, spec, container in variant.containers():
        pod, own = spec["securityContext"], container["securityContext"]
        if not (pod.get("runAsNonRoot") and pod.get("runAsUser", 0) >= 10_000 and pod.get("runAsGroup", 0) >= 10_000):
            yield f"{name}: {pod}"
        if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name}: no seccomp profile"
        if own != {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }:
            yield f"{name}: {own}"
        if spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}:
            yield f"{name}: shares a namespace of the node"
    for namespace in variant.of_kind("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the cluster does not reject privileged pods"


@manifest_rule(
    put("Deployment/gateway", f"{_POD}/volumes/0", {"name": "tmp", "configMap": {"name": "x"}}),
    put("Deployment/page", f"{_CONTAINER}/volumeMounts/0/mountPath", "/temporary"),
    drop("Deployment/model-server", f"{_CONTAINER}/volumeMounts/0/readOnly"),
    drop("Deployment/page", f"{_POD}/volumes/0/emptyDir/sizeLimit"),
    drop("CronJob/drift", f"{_JOB_CONTAINER}/volumeMounts/1/readOnly"),
    add("Deployment/gateway", f"{_CONTAINER}/volumeMounts", {"name": "captures", "mountPath": "/data"}),
    put("Deployment/review", f"{_CONTAINER}/volumeMounts/1/mountPath", "/pictures"),
)
def a_container_can_write_only_to_tmp_and_its_photos(variant: Variant) -> Iterator[str]:
    for name, spec, container in variant.containers():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        writable = {
            mount["mountPath"]: volumes[mount["name"]]
            for mount in container["volumeMounts"]
            if not mount.get("readOnly")
        }
        for volume in _PHOTO_VOLUMES.get(name, ()):
            if writable.get(f"/{volume}", {}).get("name") == volume:
                del writable[f"/{volume}"]
        if writable.keys() != {"/tmp"} or not writable["/tmp"].get("emptyDir", {}).get("sizeLimit"):
            yield f"{name}: {writable}"


@manifest_rule(put("CronJob/drift", f"{_JOB_CONTAINER}/volumeMounts/1/mountPath", "/tmp/work/serving"))
def a_volume_in_another_volume_is_directly_in_it(variant: Variant) -> Iterator[str]:
    # The container runtime creates folders in between as root, and the user of the container cannot write there.
    for name, _, container in variant.containers():
        paths = [PurePosixPath(mount["mountPath"]) for mount in container["volumeMounts"]]
        for path in paths:
            if any(other in path.parents for other in paths) and path.parent not in paths:
                yield f"{name}: {path}"


@manifest_rule(
    put("Deployment/page", f"{_POD}/automountServiceAccountToken", True),
    put("CronJob/drift", f"{_JOB_POD}/automountServiceAccountToken", True),
    put("Role/rollout", "rules/0/verbs", ["*"]),
    drop("Role/rollout", "rules/0/resourceNames"),
    add("Role/rollout", "rules", {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
    put("RoleBinding/rollout", "subjects/0/name", "gateway"),
    put("RoleBinding/rollout", "roleRef/name", "admin"),
    insert({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "x"}}),
)
def only_the_rollout_has_api_permissions_and_no_more_than_it_needs(variant: Variant) -> Iterator[str]:
    for name, template in variant.pods():
        if template["spec"].get("automountServiceAccountToken") is not False:
            yield f"{name} mounts a service account token"
    for object_ in variant.of_kind("ClusterRole", "ClusterRoleBinding"):
        yield f"{object_['kind']} {object_['metadata']['name']}"
    rights = {
        (resource, verb, name)
        for role in variant.of_kind("Role")
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }
    expected = {
        ("configmaps", "get", LIVE_CONFIG[0]),
        ("configmaps", "update", LIVE_CONFIG[0]),
        ("configmaps", "create", "*"),
        ("pods", "list", "*"),
    }
    if rights != expected:
        yield f"the permissions differ from those that the rollout needs: {rights ^ expected}"
    for binding in variant.of_kind("RoleBinding"):
        if not variant.find("Role", binding["roleRef"]["name"]):
            yield f"no Role {binding['roleRef']['name']}"
        if [(subject["kind"], subject["name"]) for subject in binding["subjects"]] != [("ServiceAccount", "rollout")]:
            yield f"{binding['subjects']} have the permissions of the rollout"


@manifest_rule(
    put("Service/gateway", "spec/type", "LoadBalancer"),
    put("Service/page", "spec/type", "NodePort"),
    put("Service/page", "spec/externalIPs", ["192.0.2.1"]),
    put("Deployment/gateway", f"{_CONTAINER}/ports/0/hostPort", 8000),
)
def nothing_is_reachable_from_outside_unless_an_overlay_enables_it(variant: Variant) -> Iterator[str]:
    for service in variant.of_kind("Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP" or service["spec"].get("externalIPs"):
            yield f"Service {service['metadata']['name']}"
    for name, _, container in variant.containers():
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name} has a host port"
    if variant.of_kind("Gateway", "Ingress") and not variant.name.startswith("gke+"):
        yield "a load balancer that no overlay enabled"


@manifest_rule(
    drop("HealthCheckPolicy/gateway", "spec/default/config/httpHealthCheck/portSpecification"),
    put("HealthCheckPolicy/page", "spec/default/config/httpHealthCheck/portSpecification", "USE_FIXED_PORT"),
    put("HealthCheckPolicy/page", "spec/default/config/httpHealthCheck/requestPath", "/"),
    put("HealthCheckPolicy/page", "spec/targetRef/name", "gateway"),
)
def load_balancer_health_checks_use_the_path_of_the_readiness_probe(variant: Variant) -> Iterator[str]:
    paths = {name: container["readinessProbe"]["httpGet"]["path"] for name, _, container in variant.server_containers()}
    policies = variant.of_kind("HealthCheckPolicy")
    for policy in policies:
        name, check = policy["spec"]["targetRef"]["name"], policy["spec"]["default"]["config"]["httpHealthCheck"]
        # A validation rule of Google's CustomResourceDefinition requires portSpecification.
        if check.get("portSpecification") != "USE_SERVING_PORT":
            yield f"HealthCheckPolicy {policy['metadata']['name']}: portSpecification of {check}"
        if check["requestPath"] != paths[name]:
            path = check["requestPath"]
            yield f"HealthCheckPolicy {policy['metadata']['name']}: requests {path} instead of {paths[name]}"
    targets = [policy["spec"]["targetRef"]["name"] for policy in policies]
    if policies and sorted(targets) != ["gateway", "page"]:
        yield f"Services with a health check: {targets}"


# --- operation


@manifest_rule(
    put("Deployment/gateway", f"{_CONTAINER}/image", "catbreeds-gateway"),
    put("Deployment/gateway", f"{_CONTAINER}/image", "registry:5000/catbreeds-gateway"),
    put("Deployment/model-server", f"{_CONTAINER}/image", "tensorflow/serving:latest"),
    put("Deployment/model-server", f"{_CONTAINER}/image", "tensorflow/serving:latest-gpu"),
)
def every_image_has_a_version_tag(variant: Variant) -> Iterator[str]:
    for name, _, container in variant.containers():
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        if not re.match(r"[0-9]+\.[0-9]+\.[0-9]+", tag):
            yield f"{name}: {container['image']}"


@manifest_rule(
    add("Deployment/model-server", f"{_CONTAINER}/args", "--enable_bathing=true"),
    add("Deployment/model-server", f"{_CONTAINER}/args", "--ssl_config_file=/tmp/x"),
    add("Deployment/model-server", f"{_CONTAINER}/args", "--rest_api_num_threads=many"),
    put("Deployment/model-server", f"{_CONTAINER}/args/0", "--port=9000"),
    put("Deployment/model-server", f"{_CONTAINER}/args/3", "--model_config_file_poll_wait_seconds=60"),
    put("Deployment/model-server", f"{_CONTAINER}/args/4", "--enable_model_warmup=true"),
    put("Deployment/model-server", f"{_CONTAINER}/args/9", "--enable_grpc_healthcheck_service=false"),
)
def the_flags_of_the_model_server_are_valid_and_match_its_ports(variant: Variant) -> Iterator[str]:
    container = next(container for name, _, container in variant.containers() if name == "model-server")
    try:
        values = flags.parse(container["args"])
    except SystemExit:
        yield f"invalid flags: {container['args']}"
        return
    ports = _ports(container)
    if (values.port, values.rest_api_port) != (ports["grpc"], ports["rest"]):
        yield "flags and container ports differ"
    if values.model_config_file_poll_wait_seconds:
        yield "the server polls the configuration, which the rollout pushes"
    if not values.allow_version_labels_for_unavailable_models:
        yield "the server could not restart with labels in its configuration"
    if not values.enable_grpc_healthcheck_service:
        yield "the probes need the gRPC health service, which is disabled"


@manifest_rule(put("ConfigMap/model-server-files", "data/batching.config", "max_batch_size { value: 8 }"))
def a_batch_holds_the_photos_of_a_request(variant: Variant) -> Iterator[str]:
    max_photos = Settings.model_fields["max_photos"].default
    for config in variant.of_kind("ConfigMap"):
        size = re.search(r"max_batch_size \{ value: (\d+) \}", config["data"].get("batching.config", ""))
        if size and int(size[1]) < max_photos:
            yield f"{size[0]}, but the gateway sends up to {max_photos} photos"


@manifest_rule(
    put("Deployment/gateway", f"{_CONTAINER}/env/0", {"name": CAPTURE_FOLDER, "value": "/tmp/captures"}),
    put("CronJob/drift", f"{_JOB_CONTAINER}/env/0/value", "/tmp"),
    put("PersistentVolumeClaim/captures", "spec/resources/requests/storage", "4Gi"),
    drop("Deployment/gateway", f"{_POD}/securityContext/fsGroup"),
    put("CronJob/drift", f"{_JOB_CONTAINER}/volumeMounts/1/mountPath", "/models"),
    put("Deployment/review", f"{_CONTAINER}/env/0/value", "/photos"),
    drop("Deployment/review", f"{_POD}/securityContext/fsGroup"),
)
def captures_are_written_to_a_volume_that_is_larger_than_their_maximum_size(variant: Variant) -> Iterator[str]:
    claim = variant.find("PersistentVolumeClaim", "captures")
    if not claim:
        return
    for name, spec, container in variant.containers():
        if name in _PHOTO_VOLUMES:
            variables = (CAPTURE_FOLDER, "CATBREEDS_PAGE_REVIEW_CAPTURES")
            folders = [entry["value"] for entry in container["env"] if entry["name"] in variables]
            if folders != ["/captures"]:
                yield f"{name}: captures in {folders}"
            if spec["securityContext"].get("fsGroup") != spec["securityContext"]["runAsGroup"]:
                yield f"{name}: its group cannot write to the volume"
        if name == "gateway":
            (maximum,) = [int(e["value"]) for e in container["env"] if e["name"] == f"{PREFIX}CAPTURE_MAX_BYTES"]
            number, unit = re.fullmatch("([0-9]+)(Gi|Ti)", claim["spec"]["resources"]["requests"]["storage"]).groups()
            if int(number) * {"Gi": 2**30, "Ti": 2**40}[unit] < 2 * maximum:
                yield f"{maximum} bytes of captures on {claim['spec']['resources']}"
        if name == "drift":
            workdir = re.search(r"--workdir (\S+)", container["command"][-1])[1]
            if f"{workdir}/serving" not in [mount["mountPath"] for mount in container["volumeMounts"]]:
                yield f"the workdir {workdir} has no models"


@manifest_rule(
    put("PodDisruptionBudget/model-server", "spec/maxUnavailable", 0),
    put("PodDisruptionBudget/model-server", "spec", {"minAvailable": 1}),
    drop("PodDisruptionBudget/gateway", "spec/unhealthyPodEvictionPolicy"),
    drop("PodDisruptionBudget/page"),
)
def a_drain_is_never_blocked(variant: Variant) -> Iterator[str]:
    for name, _ in variant.servers():
        budget = variant.find("PodDisruptionBudget", name)
        spec = budget["spec"] if budget else {}
        # An absolute number: a percentage of one replica may round to zero.
        if "minAvailable" in spec or spec.get("maxUnavailable", 0) < 1:
            yield f"{name}: a drain could block forever or evict all pods: {spec}"
        if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{name}: a pod that is not ready blocks a drain"


@manifest_rule(
    put("Deployment/model-server", f"{_POD}/terminationGracePeriodSeconds", 30),
    put("Deployment/model-server", f"{_CONTAINER}/lifecycle/preStop/sleep/seconds", 5),
    put("Deployment/model-server", f"{_POD}/shareProcessNamespace", False),
    drop("Deployment/gateway", f"{_CONTAINER}/lifecycle"),
)
def clients_leave_a_terminating_pod_before_it_stops(variant: Variant) -> Iterator[str]:
    for name, spec, container in variant.server_containers():
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if not 5 <= sleep < spec["terminationGracePeriodSeconds"]:
            yield f"{name}: sleeps {sleep} s of {spec['terminationGracePeriodSeconds']} s"
        if name == "model-server":
            # gRPC resolves a name again after 30 s at the earliest.
            age = int(re.search(r"max_connection_age_ms=(\d+)", " ".join(container["args"]))[1]) / 1000
            if sleep < 30 + age:
                yield f"connections last {age} s, but the pod terminates after {sleep} s"
            if not spec.get("shareProcessNamespace"):
                yield "the model server is process 1, which ignores SIGTERM"


@manifest_rule(
    put("Deployment/model-server", f"{_CONTAINER}/startupProbe/failureThreshold", 1000),
    put("Deployment/gateway", f"{_CONTAINER}/startupProbe/periodSeconds", 0.1),
)
def a_slow_start_does_not_fail_the_deployment(variant: Variant) -> Iterator[str]:
    for name, _, container in variant.server_containers():
        probe = container["startupProbe"]
        startup_limit = probe["periodSeconds"] * probe["failureThreshold"]
        deadline = variant.find("Deployment", name)["spec"].get("progressDeadlineSeconds", 600)
        if not 30 <= startup_limit < deadline:
            yield f"{name}: startup limit {startup_limit} s, deployment deadline {deadline} s"


@manifest_rule(
    put("HorizontalPodAutoscaler/gateway", "spec/scaleTargetRef/name", "gate"),
    put("HorizontalPodAutoscaler/gateway", "spec/minReplicas", 1),
    put("Deployment/gateway", "spec/replicas", 3),
)
def a_deploy_does_not_reset_the_number_of_replicas(variant: Variant) -> Iterator[str]:
    for scaler in variant.of_kind("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        deployment = variant.find(target["kind"], target["name"])
        if not deployment or target["name"] != scaler["metadata"]["name"]:
            yield f"{scaler['metadata']['name']}: no {target}"
        elif "replicas" in deployment["spec"]:
            yield f"{target['name']}: each deploy resets its replicas"
        if scaler["spec"]["minReplicas"] < 2:
            yield f"{target['name']}: a drain can evict its only pod"


# --- network


@manifest_rule(
    drop("NetworkPolicy/deny-all"),
    drop("NetworkPolicy/names"),
    drop("NetworkPolicy/scraping"),
    put("NetworkPolicy/model-server", "spec/ingress", [{}]),
    put("NetworkPolicy/page", "spec/egress", [{}]),
    put("NetworkPolicy/gateway", "spec/ingress", []),
    put("NetworkPolicy/scraping", "spec/ingress/0/from", [{"namespaceSelector": {}}]),
    drop("NetworkPolicy/rollout"),
    drop("NetworkPolicy/rollout", "spec/ingress/0/from/0/podSelector"),
    put("NetworkPolicy/bucket", "spec/podSelector", {"matchLabels": {"app.kubernetes.io/name": "drift"}}),
    put("Deployment/review", "spec/template/metadata/labels", {"app.kubernetes.io/name": "review"}),
)
def the_network_policies_allow_only_the_expected_connections(variant: Variant) -> Iterator[str]:
    expected = {
        ("page", "gateway", 8000),
        ("gateway", "model-server", 8500),
        ("page", "dns", 53),
        ("gateway", "dns", 53),
        ("prometheus", "gateway", 8000),
        ("prometheus", "model-server", 8501),
        ("rollout", "model-server", 8500),
        ("rollout", "gateway", 8000),
    }
    if variant.of_kind("HTTPRoute"):
        expected |= {(source, *target) for source in _CALLERS for target in (("page", 8080), ("gateway", 8000))}
    if variant.name.startswith("gke"):
        for name in {"model-server", "drift", "review"} & {name for name, _ in variant.pods()}:
            expected |= {(name, "dns", 53), (name, "internet", 443), (name, "metadata", 80)}
    allowed = set(_connections(variant))
    if allowed != expected:
        yield f"unexpected: {sorted(allowed - expected)}; missing: {sorted(expected - allowed)}"


_NAMESPACE_LABELS = {"kubernetes.io/metadata.name": "catbreeds"}
# Peers outside the namespace: labels of the namespace, labels of the pod, address.
_OUTSIDE_PEERS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "other pod": ({"kubernetes.io/metadata.name": "default"}, {"app": "other"}, "10.0.0.9"),
    "prometheus": ({"kubernetes.io/metadata.name": "monitoring"}, {"app": "prometheus"}, "10.0.0.8"),
    "rollout": (
        {"kubernetes.io/metadata.name": "kubeflow"},
        {"pipelines.kubeflow.org/v2_component": "true"},
        "10.1.0.1",
    ),
    "other pod of Kubeflow": ({"kubernetes.io/metadata.name": "kubeflow"}, {"app": "ml-pipeline"}, "10.1.0.2"),
    "dns": ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"}, "10.0.0.7"),
    "metadata": ({}, {}, "169.254.169.254"),
    "internet": ({}, {}, "203.0.113.1"),
}
_CALLERS = ("rollout", "other pod", "other pod of Kubeflow", "prometheus", "internet")
_OUTSIDE_PORTS = {
    **dict.fromkeys(("rollout", "other pod", "other pod of Kubeflow", "internet"), (80, 443)),
    **{"prometheus": (9090,), "dns": (53, 443), "metadata": (80,)},
}


def _connections(variant: Variant) -> Iterator[tuple[str, str, int]]:
    """Yield source, target and port of each connection that the NetworkPolicies allow."""
    own_pods = {name: template["metadata"]["labels"] for name, template in variant.pods()}
    peers = _OUTSIDE_PEERS | {name: (_NAMESPACE_LABELS, labels, "10.0.0.5") for name, labels in own_pods.items()}
    ports = {name: _ports(container) for name, _, container in variant.containers()}
    numbers = {name: set(own.values()) for name, own in ports.items()} | {k: set(v) for k, v in _OUTSIDE_PORTS.items()}
    for source in (*own_pods, *_CALLERS):
        for target in peers:
            if source == target or not {source, target} & own_pods.keys():
                continue
            for port in sorted(numbers[target]):
                if _is_allowed(
                    variant, "egress", own_pods.get(source), peers[target], port, ports.get(target, {})
                ) and _is_allowed(variant, "ingress", own_pods.get(target), peers[source], port, ports.get(target, {})):
                    yield source, target, port


def _is_allowed(variant, direction: str, labels, peer, port: int, names: dict[Any, int]) -> bool:
    """Return whether the policies of a pod allow `port`; other peers have no labels (None) and no policies."""
    policies = [
        policy["spec"]
        for policy in variant.of_kind("NetworkPolicy")
        if labels is not None
        and matches(policy["spec"]["podSelector"], labels)
        and direction.capitalize() in policy["spec"]["policyTypes"]
    ]
    rules = [rule for policy in policies for rule in policy.get(direction, [])]
    return not policies or any(_rule_allows(rule, direction, peer, port, names) for rule in rules)


def _rule_allows(rule: Object, direction: str, peer: tuple, port: int, names: dict[Any, int]) -> bool:
    allowed = [names.get(entry["port"], entry["port"]) for entry in rule.get("ports", [])]
    peers = rule.get("from" if direction == "ingress" else "to", [])
    return (not allowed or port in allowed) and (not peers or any(_is_peer(entry, peer) for entry in peers))


def _is_peer(entry: Object, peer: tuple[dict[str, str], dict[str, str], str]) -> bool:
    namespace, labels, address = peer
    if "ipBlock" in entry:
        within = [
            ipaddress.ip_network(cidr) for cidr in (entry["ipBlock"]["cidr"], *entry["ipBlock"].get("except", []))
        ]
        included, *excluded = [ipaddress.ip_address(address) in network for network in within]
        return included and not any(excluded)
    if "namespaceSelector" in entry:
        selector = entry["namespaceSelector"]
        return bool(namespace) and matches(selector, namespace) and matches(entry.get("podSelector", {}), labels)
    return namespace == _NAMESPACE_LABELS and matches(entry["podSelector"], labels)
